"""Triton kernels of the convolution and the selective scan, for NVIDIA GPUs; compiled on first use, nothing to build.

Letters: B batch, L time steps, E inner channels, N states a channel, K taps.

Sums over sequences and over channel blocks are written as parts and added by PyTorch in a fixed order, so results do
not change from run to run. `TRITON_INTERPRET=1` runs all of this on the CPU, slowly: tests without a GPU do that.
"""

import torch
import triton
from torch import Tensor

from statevla.models.kernels import triton_device as device
from statevla.models.kernels.inputs import CHUNK, Rows, ScanInputs, Sums

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = 16
"""Channels a program of the scan; a warp's other lanes share the states. `benchmarks/gpu` measures 8, 16 and 32."""

CONV_STEPS, CONV_CHANNELS = 32, 64


def _row(tensor: Tensor) -> tuple[Tensor, int, int]:
    return tensor, tensor.stride(0), tensor.stride(1)


def _tile(states: int) -> dict[str, int]:
    """Padded states, channels a program, and warps so that a thread holds at most 16 states."""
    padded = triton.next_power_of_2(states)
    return {"N": states, "BN": padded, "BE": CHANNELS, "STEPS": CHUNK, "num_warps": max(1, padded * CHANNELS // 512)}


def scan_forward(x: ScanInputs, out: Tensor, h0: Tensor | None, h_last: Tensor | None, kept: Tensor | None) -> None:
    """Fill `out` [B L E], contiguous, and where given `h_last` [B E N] and `kept`."""
    (batch, length, inner), states = x.u.shape, x.a.shape[1]
    if out.numel() == 0:
        if h_last is not None:
            h_last.zero_() if h0 is None else h_last.copy_(h0)
        return
    device.scan_forward[(batch, triton.cdiv(inner, CHANNELS))](
        *_row(x.u), *_row(x.dt), *_row(x.z), *_row(x.b), *_row(x.c), x.dt_bias, x.a, x.d,
        *(out if t is None else t for t in (h0, h_last, kept)), out, length, inner,
        **_tile(states), HAS_H0=h0 is not None, HAS_LAST=h_last is not None, KEEP=kept is not None,
    )  # fmt: skip


def scan_backward(
    x: ScanInputs,
    kept: Tensor,
    dout: Tensor,
    dh_last: Tensor | None,
    rows: Rows,
    sums: Sums,
    dh0: Tensor | None,
) -> None:
    """Fill `rows` = (du, ddt, dz, db, dc), `sums` = (ddt_bias, da, dd) and where given `dh0`."""
    (batch, length, inner), states = x.u.shape, x.a.shape[1]
    du, ddt, dz, db, dc = rows
    tile, blocks = _tile(states), triton.cdiv(inner, CHANNELS)
    new = {"dtype": torch.float32, "device": x.u.device}
    db_parts, dc_parts = (torch.empty(blocks, batch, length, states, **new) for _ in range(2))  # type: ignore[call-overload]
    da_parts = torch.zeros(batch, inner, states, **new)  # type: ignore[call-overload]
    bias_parts, skip_parts = (torch.zeros(batch, inner, **new) for _ in range(2))  # type: ignore[call-overload]
    scratch = torch.empty(batch * blocks * CHUNK * tile["BN"] * CHANNELS, **new)  # type: ignore[call-overload]
    if x.u.numel():
        device.scan_backward[(batch, blocks)](
            *_row(x.u), *_row(x.dt), *_row(x.z), *_row(x.b), *_row(x.c), *_row(dout),
            *_row(du), *_row(ddt), *_row(dz), x.dt_bias, x.a, x.d, kept,
            scratch if dh_last is None else dh_last, scratch, db_parts, dc_parts, da_parts, bias_parts, skip_parts,
            scratch if dh0 is None else dh0, batch, length, inner,
            **tile, HAS_DLAST=dh_last is not None, HAS_DH0=dh0 is not None,
        )  # fmt: skip
    elif dh0 is not None:
        dh0.zero_() if dh_last is None else dh0.copy_(dh_last)
    db.copy_(db_parts.sum(0))
    dc.copy_(dc_parts.sum(0))
    for out, parts in zip(sums, (bias_parts, da_parts, skip_parts), strict=True):
        torch.sum(parts, 0, out=out)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Fill `out` [B L E], contiguous."""
    (batch, length, inner), taps = x.shape, weight.shape[1]
    if out.numel():
        grid = (batch, triton.cdiv(length, CONV_STEPS), triton.cdiv(inner, CONV_CHANNELS))
        device.conv_forward[grid](*_row(x), weight, bias, out, length, inner, K=taps, BT=CONV_STEPS, BE=CONV_CHANNELS)


def conv_backward(
    x: Tensor, weight: Tensor, bias: Tensor, dout: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor
) -> None:
    """Fill `dx` [B L E], `dweight` [E K] and `dbias` [E]."""
    (batch, length, inner), taps = x.shape, weight.shape[1]
    steps = triton.cdiv(length, CONV_STEPS)
    parts = torch.zeros(batch * steps, taps, inner, dtype=torch.float32, device=x.device)
    bias_parts = torch.zeros(batch * steps, inner, dtype=torch.float32, device=x.device)
    if x.numel():
        device.conv_backward[(batch, steps, triton.cdiv(inner, CONV_CHANNELS))](
            *_row(x), *_row(dout), *_row(dx), weight, bias, parts, bias_parts, length, inner,
            K=taps, BT=CONV_STEPS, BE=CONV_CHANNELS,
        )  # fmt: skip
    dweight.copy_(parts.sum(0).T)
    torch.sum(bias_parts, 0, out=dbias)
