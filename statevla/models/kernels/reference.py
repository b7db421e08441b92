"""Mamba-1 between its two projections, written for reading: one time step a turn, in float64 when given float64.

Every other backend is held to this file in the tests. Nothing here is fast.

Letters: B batch, L time steps, E inner channels (expand * width), N states a channel, R rank of dt, K taps.

Discretisation (Gu & Dao 2023, section 3.2 and the simplified B of their code)::

    h[t] = exp(dt[t] * A) * h[t-1] + dt[t] * B[t] * u[t]        y[t] = sum_n C[t] * h[t] + D * u[t]
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums are kept in: float64 stays float64, everything else becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def conv_silu(
    x: Float[Tensor, "B L E"],
    weight: Float[Tensor, "E K"],
    bias: Float[Tensor, " E"],
) -> Float[Tensor, "B L E"]:
    """Causal depthwise convolution, then SiLU. Output t sees inputs t-K+1 … t; before the start there are zeros."""
    acc = accumulation_dtype(x.dtype)
    taps = weight.shape[1]
    padded = F.pad(x.to(acc), (0, 0, taps - 1, 0))
    out = bias.to(acc).expand(x.shape)
    for k in range(taps):
        out = out + padded[:, k : k + x.shape[1]] * weight[:, k].to(acc)
    return F.silu(out).to(x.dtype)


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
    """Scan with the softplus in front, the skip and the SiLU(z) gate behind.

    Args:
        dt: before bias and softplus, as dt_proj's matrix product gives it.
        a: the continuous-time A, so -exp(A_log); all below zero in a stable model.
        h: state before the first step, zeros when None.

    Returns:
        Gated output in u's dtype, and the state after the last step in float32 (float64 for float64).
    """
    acc = accumulation_dtype(u.dtype)
    step = F.softplus(dt.to(acc) + dt_bias.to(acc))
    x, a, b, c = u.to(acc), a.to(acc), b.to(acc), c.to(acc)
    state = torch.zeros(*u.shape[::2], a.shape[1], dtype=acc, device=u.device) if h is None else h.to(acc)
    rows = []
    for t in range(u.shape[1]):
        delta = step[:, t, :, None]
        state = torch.exp(delta * a) * state + delta * b[:, t, None, :] * x[:, t, :, None]
        rows.append((state * c[:, t, None, :]).sum(-1))
    y = torch.stack(rows, dim=1) if rows else torch.zeros_like(x)
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
