"""Mamba-1 sequence layer with interchangeable kernels; parameters named and shaped as `mamba_ssm.Mamba` has them.

Letters: B batch, L time steps, D width, E = expand * D inner channels, N states a channel, R rank of dt, K taps.

A state dict of `mamba_ssm.Mamba` loads here and the other way round, whichever kernel runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.models.kernels import cuda, inner_op, layer_op, loop, reference
from statevla.models.kernels.backends import BackendName, backend_name
from stores.errors import UsageError

_INNER: dict[BackendName, Callable[..., Tensor]] = {
    "cpu": inner_op.inner,
    "triton": inner_op.inner,
    "loop": loop.inner,
    "reference": reference.inner,
}


@dataclass(frozen=True)
class MambaState:
    """What one layer remembers between steps.

    conv: the last K-1 inputs of the convolution, oldest first [B K-1 E], the layer's dtype.
    ssm: scan state [B E N], float32 (float64 in a float64 layer).
    """

    conv: Float[Tensor, "B K E"]
    ssm: Float[Tensor, "B E N"]


class Mamba(nn.Module):
    """in_proj → causal convolution, SiLU → selective scan, gate → out_proj; no bias in either projection.

    Initialisation, and the order in which it draws random numbers, follow the Mamba paper's published code: dt
    after softplus is log-uniform in [dt_min, dt_max], A = -(1 … N) for every channel, D = 1.

    Args:
        d_model: width D of input and output.
        d_state: N. d_conv: K. expand: E / D.
        dt_rank: R, or "auto" for ceil(D / 16).
        backend: auto, cuda, triton, cpu, loop or reference; see `kernels.backends`.

    Raises:
        UsageError: a size below 1, or on the first forward a backend that cannot run on the input's device.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.backend = backend
        sizes = {
            "d_model": d_model,
            "d_state": d_state,
            "d_conv": d_conv,
            "expand": expand,
            "dt_rank": self.dt_rank,
        }
        for name, size in sizes.items():
            if size < 1:
                raise UsageError(f"Mamba {name} is {size}, must be at least 1")
        if not 0 < dt_min <= dt_max:
            raise UsageError(f"Mamba needs 0 < dt_min <= dt_max, got dt_min {dt_min}, dt_max {dt_max}")
        inner = self.d_inner
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        with torch.no_grad():
            bound = self.dt_rank**-0.5
            self.dt_proj.weight.uniform_(-bound, bound)
            dt = torch.exp(torch.rand(inner) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
            dt = dt.clamp(min=dt_init_floor)
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_state={self.d_state}, backend={self.backend}"

    def _conv_bias(self) -> Tensor:
        if self.conv1d.bias is None:
            raise UsageError("Mamba's conv1d has lost its bias")
        return self.conv1d.bias

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Run the layer over whole sequences, from an empty state. Output t depends on inputs 0 … t only."""
        parameters = (
            self.conv1d.weight,
            self._conv_bias(),
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
        )
        if x.is_cuda and backend_name(self.backend, "cuda", layer_op.computing_dtype(x)) == "triton":
            return layer_op.layer(x, self.in_proj.weight, *parameters, self.out_proj.weight)
        xz = self.in_proj(x)
        name = backend_name(self.backend, xz.device.type, xz.dtype)
        if name == "cuda":
            return cuda.layer(xz, *parameters, self.out_proj.weight)
        return self.out_proj(_INNER[name](xz, *parameters))  # type: ignore[no-any-return]
