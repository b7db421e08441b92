# mypy: disable-error-code="no-untyped-call"
"""Everything of a Mamba layer between its two outer projections, as one PyTorch operator.

Letters: B batch, L time steps, E inner channels, N states a channel, R rank of dt, K taps, P = R + 2N.

Convolution, the two small projections, scan and gate together, so that the gradients of the two halves of `xz` and of
the three parts of the projection are written where they belong: nothing is split, copied or concatenated. Devices,
dtypes and limits are those of `ops`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statevla.models.kernels.inputs import Kernels, activation, conv_inputs, kept_size, scan_inputs
from statevla.models.kernels.ops import kernels_for, wants_gradient
from statevla.models.kernels.reference import accumulation_dtype
from stores.errors import UsageError

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Eight = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def until_scan(
    kernels: Kernels, xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_weight: Tensor, dt_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the scan is given of xz [B L 2E]: u [B L E], the projection [B L P] with B and C in it, dt [B L E]."""
    (batch, length, _), (inner, rank), dtype = xz.shape, dt_weight.shape, xz.dtype
    u = xz.new_empty((batch, length, inner))
    kernels.conv_forward(*conv_inputs(xz[..., :inner], conv_weight[:, 0], conv_bias), u)
    projected = torch.mm(u.view(-1, inner), x_weight.to(dtype).t())
    dt = torch.mm(projected[:, :rank], dt_weight.to(dtype).t()).view(u.shape)
    return u, projected.view(batch, length, x_weight.shape[0]), dt


def forward(
    kernels: Kernels,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    keep: bool,
) -> Five:
    """Output [B L E]; and for the backward pass u [B L E], the projection [B L P], dt [B L E] and kept states.

    Without `keep` the four are empty.

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    (batch, length, _), (inner, states), rank = xz.shape, a_log.shape, dt_weight.shape[1]
    acc = accumulation_dtype(xz.dtype)
    xz = activation("xz", xz, (batch, length, 2 * inner), xz)
    u, projected, dt = until_scan(kernels, xz, conv_weight, conv_bias, x_weight, dt_weight)
    b, c = projected[..., rank : rank + states], projected[..., rank + states :]
    a = torch.exp(a_log.to(acc)).neg_()
    x = scan_inputs(u, dt, dt_bias, a, b, c, d, xz[..., inner:])
    out = torch.empty_like(u) if keep else dt  # a step of dt is read before its output is written
    kept = a.new_empty(kept_size(xz.device, batch, length, inner, states) if keep else 0)
    kernels.scan_forward(x, out, None, None, kept if keep else None)
    if keep:
        return out, u, projected, dt, kept
    return out, u.new_empty(0), u.new_empty(0), u.new_empty(0), kept


def backward(
    kernels: Kernels,
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
    out: Tensor | None = None,
) -> Eight:
    """Gradients of xz and the seven parameters, from the output's and what `forward` kept.

    out: filled with the output once more, by kernels that make it again anyway.
    """
    (batch, length, _), (inner, states), rank = xz.shape, a_log.shape, dt_weight.shape[1]
    acc, dtype = accumulation_dtype(xz.dtype), xz.dtype
    xz = activation("xz", xz, (batch, length, 2 * inner), xz)
    dout = activation("gradient", dout, (batch, length, inner), xz)
    a = torch.exp(a_log.to(acc)).neg_()
    b, c = projected[..., rank : rank + states], projected[..., rank + states :]
    x = scan_inputs(u, dt, dt_bias, a, b, c, d, xz[..., inner:])
    dxz, dprojected = xz.new_empty(xz.shape), torch.empty_like(projected)
    du, ddt = torch.empty_like(u), torch.empty_like(u)
    dbias, da, dd = torch.empty_like(x.dt_bias), torch.empty_like(a), torch.empty_like(x.d)
    rows = (du, ddt, dxz[..., inner:], dprojected[..., rank : rank + states], dprojected[..., rank + states :])
    kernels.scan_backward(x, kept, dout, None, rows, (dbias, da, dd), None, out)
    flat, flat_dt = dprojected.view(-1, rank + 2 * states), ddt.view(-1, inner)
    torch.mm(flat_dt, dt_weight.to(dtype), out=flat[:, :rank])
    # As the transpose, because the other way round the product is as narrow as the rank, which takes twice as long.
    ddt_weight = torch.mm(projected.view(flat.shape)[:, :rank].t(), flat_dt).t().contiguous()
    dx_weight = torch.mm(flat.t(), u.view(-1, inner))
    du.view(-1, inner).addmm_(flat, x_weight.to(dtype))
    conv = conv_inputs(xz[..., :inner], conv_weight[:, 0], conv_bias)
    dweight, dconv_bias = torch.empty_like(conv[1]), torch.empty_like(conv[2])
    kernels.conv_backward(*conv, du, dxz[..., :inner], dweight, dconv_bias)
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
) -> Five:
    return forward(kernels_for(xz), xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d, keep)


def _inner_fake(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    keep: bool,
) -> Five:
    (batch, length, _), (inner, states), acc = xz.shape, a_log.shape, accumulation_dtype(xz.dtype)
    full = (batch, length, inner)
    if not keep:
        empty = (xz.new_empty(0), xz.new_empty(0), xz.new_empty(0), xz.new_empty(0, dtype=acc))
        return xz.new_empty(full), *empty
    kept = kept_size(xz.device, batch, length, inner, states)
    projected = xz.new_empty((batch, length, x_weight.shape[0]))
    return (
        xz.new_empty(full),
        xz.new_empty(full),
        projected,
        xz.new_empty(full),
        xz.new_empty(kept, dtype=acc),
    )


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
) -> Eight:
    saved = (u, projected, dt, kept, xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d)
    return backward(kernels_for(xz), dout, *saved)


def _inner_backward_fake(
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
) -> Eight:
    like = (xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d)
    g0, g1, g2, g3, g4, g5, g6, g7 = (t.new_empty(t.shape) for t in like)
    return g0, g1, g2, g3, g4, g5, g6, g7


# Registered by hand: `torch.library.custom_op` wraps a call in checks that take 50 µs forward and backward, which one
# sequence notices.
LIBRARY = torch.library.Library("statevla", "FRAGMENT")


def define(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """An operator `statevla::name` without a gradient; `run` on real tensors, `fake` for shapes."""
    LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=()))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"statevla::{name}", fake, lib=LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.statevla, name).default
    return operator


_OPERATOR = define("mamba_inner", _inner, _inner_fake)
_BACKWARD = define("mamba_inner_backward", _inner_backward, _inner_backward_fake)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Five:
        *tensors, keep = inputs
        if not keep:
            raise UsageError("mamba_inner was called with keep=False on inputs that need a gradient")
        output: Five = _without_gradient(*inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:], *tensors)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 9
        return (*_BACKWARD(gradients[0], *ctx.saved_tensors), None)


def _without_gradient(*inputs: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _OPERATOR(*inputs)


def _with_gradient(*inputs: Any) -> Any:
    return _Differentiable.apply(*inputs) if wants_gradient(*inputs[:-1]) else _without_gradient(*inputs)


LIBRARY.impl("mamba_inner", _with_gradient, "Autograd")


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
    out: Tensor = _OPERATOR(*inputs, wants_gradient(*inputs))[0]
    return out
