"""The convolution and the selective scan as PyTorch operators: differentiable, compilable, exportable.

Letters: B batch, L time steps, E inner channels, N states a channel, K taps.

On the CPU they run the native kernels (float32, bfloat16, float64), on an NVIDIA GPU the Triton ones (float32, float16,
bfloat16). Sums are kept in float32 (float64 for float64). Parameters of another dtype than the activations, as under
autocast, are converted; activations of mixed dtypes are refused. There is no second derivative.
"""

from typing import Any

import torch
from torch import Tensor

from statevla.models.kernels import native
from statevla.models.kernels.inputs import Kernels, activation, conv_inputs, kept_size, parameter, scan_inputs
from statevla.models.kernels.reference import accumulation_dtype
from stores.errors import UsageError


def kernels_for(x: Tensor) -> Kernels:
    """The kernels of the device that x is on.

    Raises:
        UsageError: there are none, or they do not compute x's dtype.
    """
    if x.device.type == "cpu":
        if x.dtype in native.IO_CODES:
            return native
        raise UsageError(f"native mamba kernels compute {', '.join(map(str, native.IO_CODES))}, not {x.dtype}")
    if x.device.type == "cuda":
        from statevla.models.kernels import triton_kernels

        if x.dtype in triton_kernels.DTYPES:
            return triton_kernels
        raise UsageError(f"Triton mamba kernels compute {', '.join(map(str, triton_kernels.DTYPES))}, not {x.dtype}")
    raise UsageError(f"there are no mamba kernels for {x.device.type}; take the backend 'loop'")


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether the backward pass will be needed, and so the states for it."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# ---- convolution ----


@torch.library.custom_op("statevla::conv_silu", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, weight, bias = conv_inputs(x, weight, bias)
    out = x.new_empty(x.shape)
    kernels_for(x).conv_forward(x, weight, bias, out)
    return out


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("statevla::conv_silu_backward", mutates_args=())
def _conv_backward(dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kinds = weight.dtype, bias.dtype
    x, weight, bias = conv_inputs(x, weight, bias)
    dout = activation("gradient", dout, tuple(x.shape), x)
    dx, dweight, dbias = x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)
    kernels_for(x).conv_backward(x, weight, bias, dout, dx, dweight, dbias)
    return dx, dweight.to(kinds[0]), dbias.to(kinds[1])


@_conv_backward.register_fake
def _(dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _conv_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _conv_gradient(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _conv_backward(dout, *ctx.saved_tensors)  # type: ignore[no-any-return]


_conv.register_autograd(_conv_gradient, setup_context=_conv_context)


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Causal depthwise convolution and SiLU, as `reference.conv_silu`: x [B L E], weight [E K], bias [E].

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    return _conv(x, weight, bias)  # type: ignore[no-any-return]


# ---- scan ----


@torch.library.custom_op("statevla::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    h: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = scan_inputs(u, dt, dt_bias, a, b, c, d, z)
    (batch, length, inner), states, acc = u.shape, a.shape[1], inputs.a.dtype
    if h is not None:
        h = parameter("state", h, (batch, inner, states), acc)
    out = u.new_empty(u.shape)
    last = u.new_empty((batch, inner, states), dtype=acc)
    kept = u.new_empty(kept_size(u.device, batch, length, inner, states) if keep else 0, dtype=acc)
    kernels_for(u).scan_forward(inputs, out, h, last, kept if keep else None)
    return out, last, kept


@_scan.register_fake
def _(
    u: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    h: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, inner), states, acc = u.shape, a.shape[1], accumulation_dtype(u.dtype)
    kept = kept_size(u.device, batch, length, inner, states) if keep else 0
    return u.new_empty(u.shape), u.new_empty((batch, inner, states), dtype=acc), u.new_empty(kept, dtype=acc)


@torch.library.custom_op("statevla::selective_scan_backward", mutates_args=())
def _scan_backward(
    dout: Tensor,
    dlast: Tensor,
    kept: Tensor,
    u: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = scan_inputs(u, dt, dt_bias, a, b, c, d, z)
    du, ddt, dz, db, dc = (t.new_empty(t.shape) for t in (u, dt, z, b, c))
    dbias, da, dd = torch.empty_like(x.dt_bias), torch.empty_like(x.a), torch.empty_like(x.d)
    dh = x.a.new_empty((u.shape[0], *a.shape))
    dout = activation("gradient", dout, tuple(u.shape), u)
    dlast = parameter("state gradient", dlast, tuple(dh.shape), dh.dtype)
    kernels_for(u).scan_backward(x, kept, dout, dlast, (du, ddt, dz, db, dc), (dbias, da, dd), dh)
    return du, ddt, dbias.to(dt_bias.dtype), da.to(a.dtype), db, dc, dd.to(d.dtype), dz, dh


@_scan_backward.register_fake
def _(
    dout: Tensor,
    dlast: Tensor,
    kept: Tensor,
    u: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (u, dt, dt_bias, a, b, c, d, z)
    du, ddt, dbias, da, db, dc, dd, dz = (t.new_empty(t.shape) for t in like)
    return du, ddt, dbias, da, db, dc, dd, dz, dlast.new_empty(dlast.shape)


def _scan_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, h, keep = inputs
    if not keep:
        raise UsageError("selective_scan was called with keep=False on inputs that need a gradient")
    ctx.mark_non_differentiable(output[2])
    ctx.state_dtype = None if h is None else h.dtype
    ctx.save_for_backward(output[2], *tensors)


def _scan_gradient(ctx: Any, dout: Tensor, dlast: Tensor, dkept: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, dh = _scan_backward(dout, dlast, *ctx.saved_tensors)
    return (*gradients, None if ctx.state_dtype is None else dh.to(ctx.state_dtype), None)


_scan.register_autograd(_scan_gradient, setup_context=_scan_context)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.selective_scan`: gated output [B L E] in u's dtype and last state [B E N] in the sums' dtype.

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    out, last, _ = _scan(u, dt, dt_bias, a, b, c, d, z, h, wants_gradient(u, dt, dt_bias, a, b, c, d, z, h))
    return out, last
