"""Mamba-1 between its two projections in plain PyTorch, quick enough to train a small preset with.

Runs on any device and dtype. The discretised A and B are made for all time steps at once, so memory is
O(B L E N): the price of needing no compiler. The native and the Triton kernel keep O(B L E).

Letters: B batch, L time steps, E inner channels, N states a channel, R rank of dt, K taps.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from statevla.models.kernels.reference import accumulation_dtype


def conv_silu(
    x: Float[Tensor, "B L E"],
    weight: Float[Tensor, "E K"],
    bias: Float[Tensor, " E"],
) -> Float[Tensor, "B L E"]:
    """Causal depthwise convolution through `conv1d`, then SiLU."""
    if x.shape[1] == 0:
        return x  # `conv1d` refuses it
    taps = weight.shape[1]
    out = F.conv1d(x.mT, weight[:, None].to(x.dtype), bias.to(x.dtype), padding=taps - 1, groups=weight.shape[0])
    return F.silu(out[..., : x.shape[1]]).mT


def selective_scan(
    u: Float[Tensor, "B L E"],
    dt: Float[Tensor, "B L E"],
    dt_bias: Float[Tensor, " E"],
    a: Float[Tensor, "E N"],
    b: Float[Tensor, "B L N"],
    c: Float[Tensor, "B L N"],
    d: Float[Tensor, " E"],
    z: Float[Tensor, "B L E"],
    h: Float[Tensor, "B E N"] | None = None,
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]:
    """As `reference.selective_scan`, with only the recurrence inside the loop over time."""
    acc = accumulation_dtype(u.dtype)
    step = F.softplus(dt.to(acc) + dt_bias.to(acc))
    x = u.to(acc)
    decay = torch.exp(step[..., None] * a.to(acc))
    drive = (step * x)[..., None] * b.to(acc)[:, :, None]
    state = x.new_zeros(*u.shape[::2], a.shape[1]) if h is None else h.to(acc)
    states = []
    for decay_t, drive_t in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = torch.addcmul(drive_t, decay_t, state)
        states.append(state)
    y = torch.einsum("blen,bln->ble", torch.stack(states, 1), c.to(acc)) if states else torch.zeros_like(x)
    y = (y + d.to(acc) * x) * F.silu(z.to(acc))
    return y.to(u.dtype), state


def inner(
    xz: Float[Tensor, "B L E2"],
    conv_weight: Float[Tensor, "E 1 K"],
    conv_bias: Float[Tensor, " E"],
    x_weight: Float[Tensor, "R2N E"],
    dt_weight: Float[Tensor, "E R"],
    dt_bias: Float[Tensor, " E"],
    a_log: Float[Tensor, "E N"],
    d: Float[Tensor, " E"],
) -> Float[Tensor, "B L E"]:
    """Everything between in_proj and out_proj. EE is 2 E, P is R + 2 N."""
    x, z = xz.chunk(2, dim=-1)
    u = conv_silu(x, conv_weight[:, 0], conv_bias)
    rank, states = dt_weight.shape[1], a_log.shape[1]
    dt, b, c = torch.split(F.linear(u, x_weight.to(u.dtype)), [rank, states, states], dim=-1)
    dt = F.linear(dt, dt_weight.to(u.dtype))
    a = -torch.exp(a_log.to(accumulation_dtype(u.dtype)))
    y, _ = selective_scan(u, dt, dt_bias, a, b, c, d, z)
    return y
