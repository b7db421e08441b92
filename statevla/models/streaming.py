"""A Mamba layer over a sequence in pieces: what was read is kept as a state of fixed size, and more tokens follow it.

The flow policy reads the encoder's tokens once in this way, instead of once a sampling step.

Letters: B batch, L time steps of one piece, D width, E inner channels, N states a channel, K taps.
"""

from types import ModuleType
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from statevla.models.kernels import loop, ops, reference
from statevla.models.kernels.backends import BackendName, backend_name
from statevla.models.mamba import Mamba, MambaState

_KERNELS: Final[dict[BackendName, ModuleType]] = {
    "cpu": ops,
    "cuda": ops,  # mamba-ssm's scan takes no state to begin with; ours is on the same device
    "triton": ops,
    "loop": loop,
    "reference": reference,
}


def extend(
    layer: Mamba, x: Float[Tensor, "B L D"], state: MambaState | None
) -> tuple[Float[Tensor, "B L D"], MambaState]:
    """`layer` over `x` as the continuation of what `state` remembers (None: of nothing), and the state after it.

    For inference; the numbers are those of `Mamba.forward` over all pieces end to end, up to rounding.
    """
    xz = layer.in_proj(x)
    inner, gate = xz.chunk(2, dim=-1)
    past = inner.new_zeros(len(x), layer.d_conv - 1, layer.d_inner) if state is None else state.conv
    window = torch.cat([past, inner], dim=1)
    kernels = _KERNELS[backend_name(layer.backend, xz.device.type, xz.dtype)]
    u = kernels.conv_silu(window, layer.conv1d.weight[:, 0], layer._conv_bias())[:, layer.d_conv - 1 :]
    sizes = [layer.dt_rank, layer.d_state, layer.d_state]
    dt, b, c = torch.split(layer.x_proj(u), sizes, dim=-1)
    dt = F.linear(dt, layer.dt_proj.weight)
    a = -torch.exp(layer.A_log.to(reference.accumulation_dtype(xz.dtype)))
    before = None if state is None else state.ssm
    y, ssm = kernels.selective_scan(u, dt, layer.dt_proj.bias, a, b, c, layer.D, gate, h=before)
    return layer.out_proj(y), MambaState(window[:, window.shape[1] - layer.d_conv + 1 :], ssm)
