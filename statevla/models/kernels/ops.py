"""The native CPU kernels as PyTorch operators: differentiable, compilable, exportable.

Letters: B batch, L time steps, E inner channels, N states a channel, R rank of dt, K taps, P = R + 2N.

`inner` is what the model calls: convolution, the two small projections, scan and gate as one operator, so that the
gradients of the two halves of `xz` and of the three parts of the projection are written where they belong and
nothing is split, copied or concatenated. `conv_silu` and `selective_scan` are the kernels by themselves.

float32, bfloat16 and float64; sums are kept in float32 (float64 for float64). Parameters of another dtype than the
activations, as under autocast, are converted; activations of mixed dtypes are refused. Gradients exist once: there
is no second derivative.
"""

from typing import Any

import torch
from torch import Tensor

from statevla.models.kernels import native
from statevla.models.kernels.reference import accumulation_dtype
from stores.errors import UsageError


def _activation(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`tensor`, rows made contiguous, after its shape and dtype are checked against the first input."""
    if tensor.dtype != like.dtype or tensor.dtype not in native.IO_CODES:
        raise UsageError(
            f"native mamba kernel: {name} is {tensor.dtype}, the first input is {like.dtype};"
            f" all must be one of {', '.join(map(str, native.IO_CODES))}"
        )
    if tuple(tensor.shape) != shape:
        raise UsageError(f"native mamba kernel: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _parameter(name: str, tensor: Tensor, shape: tuple[int, ...], acc: torch.dtype) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise UsageError(f"native mamba kernel: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor.to(acc).contiguous()


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# ---- convolution ----


@torch.library.custom_op("statevla::conv_silu", mutates_args=(), device_types="cpu")
def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, weight, bias = _conv_inputs(x, weight, bias)
    out = torch.empty(x.shape, dtype=x.dtype)
    native.conv_forward(x, weight, bias, out)
    return out


def _conv_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    acc, inner = accumulation_dtype(x.dtype), x.shape[2]
    return (
        _activation("x", x, tuple(x.shape), x),
        _parameter("conv weight", weight, (inner, weight.shape[-1]), acc),
        _parameter("conv bias", bias, (inner,), acc),
    )


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("statevla::conv_silu_backward", mutates_args=(), device_types="cpu")
def _conv_backward(dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kinds = weight.dtype, bias.dtype
    x, weight, bias = _conv_inputs(x, weight, bias)
    dout = _activation("gradient", dout, tuple(x.shape), x)
    dx, dweight, dbias = torch.empty(x.shape, dtype=x.dtype), torch.empty_like(weight), torch.empty_like(bias)
    native.conv_backward(x, weight, bias, dout, dx, dweight, dbias)
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


def _scan_inputs(
    u: Tensor, dt: Tensor, dt_bias: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    acc, full = accumulation_dtype(u.dtype), tuple(u.shape)
    if full[2] == 0 or a.shape[1] == 0:
        raise UsageError(
            f"native mamba kernel: {full[2]} channels with {a.shape[1]} states, needs at least one of each"
        )
    states = (*full[:2], a.shape[1])
    return (
        _activation("u", u, full, u),
        _activation("dt", dt, full, u),
        _parameter("dt bias", dt_bias, full[2:], acc),
        _parameter("A", a, (full[2], a.shape[1]), acc),
        _activation("B", b, states, u),
        _activation("C", c, states, u),
        _parameter("D", d, full[2:], acc),
        _activation("z", z, full, u),
    )


@torch.library.custom_op("statevla::selective_scan", mutates_args=(), device_types="cpu")
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
    args = _scan_inputs(u, dt, dt_bias, a, b, c, d, z)
    (batch, length, inner), states, acc = u.shape, a.shape[1], args[3].dtype
    if h is not None:
        h = _parameter("state", h, (batch, inner, states), acc)
    out = torch.empty(u.shape, dtype=u.dtype)
    last = torch.empty(batch, inner, states, dtype=acc)
    kept = torch.empty(native.kept_size(batch, length, inner, states) if keep else 0, dtype=acc)
    native.scan_forward(native.scan_args(*args), out, h, last, kept if keep else None)
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
    kept = native.kept_size(batch, length, inner, states) if keep else 0
    return u.new_empty(u.shape), u.new_empty((batch, inner, states), dtype=acc), u.new_empty(kept, dtype=acc)


@torch.library.custom_op("statevla::selective_scan_backward", mutates_args=(), device_types="cpu")
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
    args = _scan_inputs(u, dt, dt_bias, a, b, c, d, z)
    rows = tuple(torch.empty(t.shape, dtype=t.dtype) for t in (u, dt, z, b, c))
    du, ddt, dz, db, dc = rows
    dbias, da, dd = torch.empty_like(args[2]), torch.empty_like(args[3]), torch.empty_like(args[6])
    dh = torch.empty(u.shape[0], *a.shape, dtype=args[3].dtype)
    dout = _activation("gradient", dout, tuple(u.shape), u)
    dlast = _parameter("state gradient", dlast, tuple(dh.shape), dh.dtype)
    native.scan_backward(native.scan_args(*args), kept, dout, dlast, (du, ddt, dz, db, dc), (dbias, da, dd), dh)
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
    out, last, _ = _scan(u, dt, dt_bias, a, b, c, d, z, h, _wants_gradient(u, dt, dt_bias, a, b, c, d, z, h))
    return out, last


# ---- both, with the projections between them ----


@torch.library.custom_op("statevla::mamba_inner", mutates_args=(), device_types="cpu")
def _inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, length, _), (inner, states), rank = xz.shape, a_log.shape, dt_weight.shape[1]
    acc, dtype = accumulation_dtype(xz.dtype), xz.dtype
    xz = _activation("xz", xz, (batch, length, 2 * inner), xz)
    x, z = xz[..., :inner], xz[..., inner:]
    x, weight, bias = _conv_inputs(x, conv_weight[:, 0], conv_bias)
    u = torch.empty(batch, length, inner, dtype=dtype)
    native.conv_forward(x, weight, bias, u)
    projected = torch.mm(u.view(-1, inner), x_weight.to(dtype).t())
    dt = torch.mm(projected[:, :rank], dt_weight.to(dtype).t()).view(u.shape)
    projected = projected.view(batch, length, rank + 2 * states)
    b, c = projected[..., rank : rank + states], projected[..., rank + states :]
    args = _scan_inputs(u, dt, dt_bias, torch.exp(a_log.to(acc)).neg_(), b, c, d, z)
    out = torch.empty(u.shape, dtype=dtype)
    if not keep:
        native.scan_forward(native.scan_args(*args), out, None, None, None)
        nothing = torch.empty(0, dtype=dtype)
        return out, nothing, nothing.clone(), nothing.clone(), torch.empty(0, dtype=acc)
    kept = torch.empty(native.kept_size(batch, length, inner, states), dtype=acc)
    native.scan_forward(native.scan_args(*args), out, None, None, kept)
    return out, u, projected, dt, kept


@_inner.register_fake
def _(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, length, _), (inner, states), acc = xz.shape, a_log.shape, accumulation_dtype(xz.dtype)
    full = (batch, length, inner)
    if not keep:
        empty = (xz.new_empty(0), xz.new_empty(0), xz.new_empty(0), xz.new_empty(0, dtype=acc))
        return xz.new_empty(full), *empty
    kept = native.kept_size(batch, length, inner, states)
    projected = xz.new_empty((batch, length, x_weight.shape[0]))
    return (
        xz.new_empty(full),
        xz.new_empty(full),
        projected,
        xz.new_empty(full),
        xz.new_empty(kept, dtype=acc),
    )


@torch.library.custom_op("statevla::mamba_inner_backward", mutates_args=(), device_types="cpu")
def _inner_backward(
    dout: Tensor,
    u: Tensor,
    projected: Tensor,
    dt: Tensor,
    kept: Tensor,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, length, _), (inner, states), rank = xz.shape, a_log.shape, dt_weight.shape[1]
    acc, dtype = accumulation_dtype(xz.dtype), xz.dtype
    xz = _activation("xz", xz, (batch, length, 2 * inner), xz)
    dout = _activation("gradient", dout, (batch, length, inner), xz)
    x, z = xz[..., :inner], xz[..., inner:]
    a = torch.exp(a_log.to(acc)).neg_()
    b, c = projected[..., rank : rank + states], projected[..., rank + states :]
    args = _scan_inputs(u, dt, dt_bias, a, b, c, d, z)
    dxz, dprojected = torch.empty(xz.shape, dtype=dtype), torch.empty(projected.shape, dtype=dtype)
    du, ddt = torch.empty(u.shape, dtype=dtype), torch.empty(u.shape, dtype=dtype)
    dbias, da, dd = torch.empty_like(args[2]), torch.empty_like(a), torch.empty_like(args[6])
    rows = (du, ddt, dxz[..., inner:], dprojected[..., rank : rank + states], dprojected[..., rank + states :])
    native.scan_backward(native.scan_args(*args), kept, dout, None, rows, (dbias, da, dd), None)
    flat, flat_dt = dprojected.view(-1, rank + 2 * states), ddt.view(-1, inner)
    flat[:, :rank] = torch.mm(flat_dt, dt_weight.to(dtype))
    ddt_weight = torch.mm(flat_dt.t(), projected.view(flat.shape)[:, :rank])
    dx_weight = torch.mm(flat.t(), u.view(-1, inner))
    du.view(-1, inner).addmm_(flat, x_weight.to(dtype))
    x, weight, bias = _conv_inputs(x, conv_weight[:, 0], conv_bias)
    dweight, dconv_bias = torch.empty_like(weight), torch.empty_like(bias)
    native.conv_backward(x, weight, bias, du, dxz[..., :inner], dweight, dconv_bias)
    return (
        dxz,
        dweight.unsqueeze_(1).to(conv_weight.dtype),
        dconv_bias.to(conv_bias.dtype),
        dx_weight.to(x_weight.dtype),
        ddt_weight.to(dt_weight.dtype),
        dbias.to(dt_bias.dtype),
        da.mul_(a).to(a_log.dtype),
        dd.to(d.dtype),
    )


@_inner_backward.register_fake
def _(
    dout: Tensor,
    u: Tensor,
    projected: Tensor,
    dt: Tensor,
    kept: Tensor,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d)
    g0, g1, g2, g3, g4, g5, g6, g7 = (t.new_empty(t.shape) for t in like)
    return g0, g1, g2, g3, g4, g5, g6, g7


def _inner_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, keep = inputs
    if not keep:
        raise UsageError("mamba_inner was called with keep=False on inputs that need a gradient")
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *tensors)


def _inner_gradient(ctx: Any, dout: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 9
    return (*_inner_backward(dout, *ctx.saved_tensors), None)


_inner.register_autograd(_inner_gradient, setup_context=_inner_context)


def inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
) -> Tensor:
    """Everything between in_proj and out_proj, as `reference.inner`: xz [B L 2E] to [B L E].

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    inputs = (xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d)
    out: Tensor = _inner(*inputs, _wants_gradient(*inputs))[0]
    return out
