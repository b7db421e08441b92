# mypy: disable-error-code="no-untyped-call"
"""Triton kernels of the convolution and the selective scan, for NVIDIA GPUs; compiled on first use, nothing to build.

Letters: B batch, L time steps, E inner channels, N states a channel, K taps.

The backward pass goes through the sequence again, so of a forward pass nothing is kept but the state before it. Sums
over sequences and over channel blocks are written as parts and added by PyTorch in a fixed order, so results do not
change from run to run. `TRITON_INTERPRET=1` runs all of this on the CPU, slowly: tests without a GPU do that.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from statevla.models.kernels import triton_conv, triton_scan
from statevla.models.kernels.inputs import Rows, ScanInputs, Sums

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LANES = 32


class Tile(NamedTuple):
    """How a program of the scan divides its work: lanes that share a channel's states, channels a lane, and steps
    that are unrolled (in the backward pass also those between two states that are written down)."""

    state_lanes: int
    channels: int
    steps: int


FORWARD = Tile(2, 2, 4)
FORWARD_SOME, SOME = Tile(4, 1, 4), 8192
"""Up to SOME channels, counted over all sequences: a wider tile would leave part of the GPU idle."""
FORWARD_FEW, FEW = Tile(8, 1, 8), 1024
AGAIN = Tile(2, 2, 4)
BACKWARD = Tile(4, 4, 4)
CONV_STEPS, CONV_CHANNELS, CONV_BACKWARD_CHANNELS = 16, 128, 64
MOST_STATES, MOST_STATES_BACKWARD = 16, 8
"""States of a channel in one lane's registers."""
PLACES = 16
"""Of the state in one lane's registers, where there are more states than a tile was made for."""


def _row(tensor: Tensor) -> tuple[Tensor, int, int]:
    return tensor, tensor.stride(0), tensor.stride(1)


def _shape(tile: Tile, states: int, most: int) -> dict[str, int]:
    """The tile's extents for `states` (N): as many lanes to a channel as wanted, more where a lane holds too many
    states, and then fewer channels a lane."""
    padded = triton.next_power_of_2(states)
    lanes = min(padded, LANES, max(tile.state_lanes, padded // most))
    channels = tile.channels
    while lanes > tile.state_lanes and channels > 1 and channels * (padded // lanes) > PLACES:
        channels //= 2
    return {"N": states, "NR": padded // lanes, "ER": channels, "NL": lanes, "EL": LANES // lanes, "STEPS": tile.steps}


def _forward_tile(channels: int) -> Tile:
    if channels <= FEW:
        return FORWARD_FEW
    return FORWARD_SOME if channels <= SOME else FORWARD


def _blocks(shape: dict[str, int], inner: int) -> int:
    return int(triton.cdiv(inner, shape["ER"] * shape["EL"]))


def scan_forward(x: ScanInputs, out: Tensor, h0: Tensor | None, h_last: Tensor | None, kept: Tensor | None) -> None:
    """Fill `out` [B L E], contiguous, and where given `h_last` and `kept`, the state before the first step
    [B E N]."""
    (batch, length, inner), states = x.u.shape, x.a.shape[1]
    if kept is not None:
        kept.zero_() if h0 is None else kept.copy_(h0.view(kept.shape))
    if out.numel() == 0:
        if h_last is not None:
            h_last.zero_() if h0 is None else h_last.copy_(h0)
        return
    shape = _shape(_forward_tile(batch * inner), states, MOST_STATES)
    with torch.cuda.device_of(x.u):  # Triton launches on the current device, whatever its tensors are on
        triton_scan.scan_forward[(batch, _blocks(shape, inner))](
            *_row(x.u), *_row(x.dt), *_row(x.z), *_row(x.b), *_row(x.c), out, 0, 0, out, 0, 0,
            x.dt_bias, x.a, x.d, *(out if t is None else t for t in (h0, h_last)), out, out, out, out, length, inner,
            **shape, HAS_H0=h0 is not None, HAS_LAST=h_last is not None, HAS_OUT=True, BACK=False, num_warps=1,
        )  # fmt: skip


def scan_backward(
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
    pass's output, contiguous.

    kept: the state before the first step, as `scan_forward` keeps it; empty: zeros.
    """
    (batch, length, inner), states = x.u.shape, x.a.shape[1]
    du, ddt, dz, db, dc = rows
    again, back = _shape(AGAIN, states, MOST_STATES), _shape(BACKWARD, states, MOST_STATES_BACKWARD)
    again["STEPS"] = back["STEPS"]
    blocks = _blocks(back, inner)

    def new(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=x.u.device)

    bias_parts, da_parts, skip_parts = new(batch, inner), new(batch, inner, states), new(batch, inner)
    db_parts, dc_parts = (new(blocks, batch, length, states) for _ in range(2))
    if x.u.numel():
        h0 = kept if kept.numel() else None
        # In the activations' own precision: it is where a chunk of a few steps begins, for B's, C's and A's gradient.
        every = x.u.new_empty(batch, triton.cdiv(length, back["STEPS"]), states, inner)
        delta, dy = new(*x.u.shape), torch.empty_like(x.u, memory_format=torch.contiguous_format)
        with torch.cuda.device_of(x.u):
            triton_scan.scan_forward[(batch, _blocks(again, inner))](
                *_row(x.u), *_row(x.dt), *_row(x.z), *_row(x.b), *_row(x.c), *_row(dout), *_row(dz),
                x.dt_bias, x.a, x.d, every if h0 is None else h0, every, dy if out is None else out,
                every, delta, dy, length, inner,
                **again, HAS_H0=h0 is not None, HAS_LAST=False, HAS_OUT=out is not None, BACK=True, num_warps=1,
            )  # fmt: skip
            triton_scan.scan_backward[(batch, blocks)](
                *_row(x.u), *_row(x.b), *_row(x.c), *_row(du), *_row(ddt),
                delta, dy, x.a, x.d, every, every if dh_last is None else dh_last, db_parts, dc_parts,
                da_parts, bias_parts, skip_parts, every if dh0 is None else dh0, batch, length, inner,
                **back, HAS_DLAST=dh_last is not None, HAS_DH0=dh0 is not None, num_warps=1,
            )  # fmt: skip
    else:
        for part in (bias_parts, da_parts, skip_parts):
            part.zero_()
        if dh0 is not None:
            dh0.zero_() if dh_last is None else dh0.copy_(dh_last)
    db.copy_(db_parts.sum(0))
    dc.copy_(dc_parts.sum(0))
    for total, parts in zip(sums, (bias_parts, da_parts, skip_parts), strict=True):
        torch.sum(parts, 0, out=total)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Fill `out` [B L E], contiguous."""
    (batch, length, inner), taps = x.shape, weight.shape[1]
    if out.numel():
        grid = (batch, triton.cdiv(length, CONV_STEPS), triton.cdiv(inner, CONV_CHANNELS))
        with torch.cuda.device_of(x):
            triton_conv.conv_forward[grid](
                *_row(x), weight, bias, out, length, inner, K=taps, BT=CONV_STEPS, BE=CONV_CHANNELS, num_warps=1
            )


def conv_backward(
    x: Tensor, weight: Tensor, bias: Tensor, dout: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor
) -> None:
    """Fill `dx` [B L E], `dweight` [E K] and `dbias` [E]."""
    (batch, length, inner), taps = x.shape, weight.shape[1]
    steps = triton.cdiv(length, CONV_STEPS)
    new: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    parts = torch.empty(batch * steps, taps, inner, **new)
    bias_parts = torch.empty(batch * steps, inner, **new)
    if x.numel():
        with torch.cuda.device_of(x):
            triton_conv.conv_backward[(batch, steps, triton.cdiv(inner, CONV_BACKWARD_CHANNELS))](
                *_row(x), *_row(dout), *_row(dx), weight, bias, parts, bias_parts, length, inner,
                K=taps, BT=CONV_STEPS, BE=CONV_BACKWARD_CHANNELS, num_warps=1,
            )  # fmt: skip
    dweight.copy_(parts.sum(0).T)
    torch.sum(bias_parts, 0, out=dbias)
