"""What the convolution and scan kernels of every device are given: checked tensors, and the calls they answer to.

Letters: B batch, L time steps, E inner channels, N states a channel, K taps.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from statevla.models.kernels.reference import accumulation_dtype
from stores.errors import UsageError

CHUNK = 16
"""Steps between two states that the native forward scan keeps; `csrc/abi.h` has the same number."""

Size = int | torch.SymInt  # a number, or its symbol while a compiler traces


class ScanInputs(NamedTuple):
    """The scan's inputs. Activations u, dt, z [B L E] and b, c [B L N] share a dtype and have contiguous rows;
    parameters dt_bias, d [E] and a [E N] are contiguous, in the dtype that sums are kept in."""

    u: Tensor
    dt: Tensor
    dt_bias: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    z: Tensor


Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Sums = tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class Kernels(Protocol):
    """One device's kernels: a module with these four functions, which fill the tensors they are given."""

    def conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
        """Fill `out` [B L E], contiguous."""

    def conv_backward(
        self, x: Tensor, weight: Tensor, bias: Tensor, dout: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor
    ) -> None:
        """Fill `dx` [B L E], `dweight` [E K] and `dbias` [E]."""

    def scan_forward(
        self, x: ScanInputs, out: Tensor, h0: Tensor | None, h_last: Tensor | None, kept: Tensor | None
    ) -> None:
        """Fill `out` [B L E], contiguous, and where given `h_last` [B E N] and `kept` (`kept_size` numbers)."""

    def scan_backward(
        self,
        x: ScanInputs,
        kept: Tensor,
        dout: Tensor,
        dh_last: Tensor | None,
        rows: Rows,
        sums: Sums,
        dh0: Tensor | None,
        out: Tensor | None = None,
    ) -> None:
        """Fill `rows` = (du, ddt, dz, db, dc), `sums` = (ddt_bias, da, dd) and where given `dh0` and `out`, the forward
        pass's output (kernels that keep the states cannot)."""


def kept_size(device: torch.device, batch: Size, length: Size, inner: Size, states: Size) -> Size:
    """Numbers in the states that the forward scan keeps for the backward one: on the CPU a state every CHUNK steps, on
    a GPU, where going through the sequence again costs less than keeping it, the one before the first step."""
    return batch * (-(-length // CHUNK) if device.type == "cpu" else 1) * states * inner


def activation(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`tensor`, rows made contiguous, after its shape and dtype are checked against the first input.

    Raises:
        UsageError: they differ.
    """
    if tensor.dtype != like.dtype or not tensor.is_floating_point():
        raise UsageError(f"mamba kernel: {name} is {tensor.dtype}, the first input is {like.dtype}; they must agree")
    if tuple(tensor.shape) != shape:
        raise UsageError(f"mamba kernel: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def parameter(name: str, tensor: Tensor, shape: tuple[int, ...], acc: torch.dtype) -> Tensor:
    """`tensor` contiguous in the sums' dtype, after its shape is checked.

    Raises:
        UsageError: the shape differs.
    """
    if tuple(tensor.shape) != shape:
        raise UsageError(f"mamba kernel: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor.to(acc).contiguous()


def conv_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [B L E], weight [E K] and bias [E] as the kernels take them.

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    acc, inner = accumulation_dtype(x.dtype), x.shape[2]
    return (
        activation("x", x, tuple(x.shape), x),
        parameter("conv weight", weight, (inner, weight.shape[-1]), acc),
        parameter("conv bias", bias, (inner,), acc),
    )


def scan_inputs(
    u: Tensor, dt: Tensor, dt_bias: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor
) -> ScanInputs:
    """The scan's inputs as the kernels take them.

    Raises:
        UsageError: shapes or dtypes do not fit, or there is no channel or no state.
    """
    acc, full = accumulation_dtype(u.dtype), tuple(u.shape)
    if full[2] == 0 or a.shape[1] == 0:
        raise UsageError(f"mamba kernel: {full[2]} channels with {a.shape[1]} states, needs at least one of each")
    states = (*full[:2], a.shape[1])
    return ScanInputs(
        activation("u", u, full, u),
        activation("dt", dt, full, u),
        parameter("dt bias", dt_bias, full[2:], acc),
        parameter("A", a, (full[2], a.shape[1]), acc),
        activation("B", b, states, u),
        activation("C", c, states, u),
        parameter("D", d, full[2:], acc),
        activation("z", z, full, u),
    )
