# mypy: disable-error-code="no-untyped-call"
"""A whole Mamba layer as one PyTorch operator that keeps nothing but its input for the backward pass.

Letters: B batch, L time steps, D width, E inner channels, N states a channel, R rank of dt, K taps, P = R + 2N.

Of a layer's 2.9 MB a sample that a backward pass reads (D 256, L 395, bfloat16), 0.2 are the input. All others are
made from it again: two matrix products and a convolution more, against writing and reading them. For kernels whose
backward pass goes through the sequence again by itself (`triton_kernels`); the native ones keep theirs (`inner_op`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statevla.models.kernels import inner_op
from statevla.models.kernels.inner_op import LIBRARY, define
from statevla.models.kernels.inputs import Kernels, activation
from statevla.models.kernels.ops import kernels_for, wants_gradient

Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Ten = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(kernels: Kernels, x: Tensor, in_weight: Tensor, *rest: Tensor) -> Tensor:
    """Output [B L D] of x [B L D]. `rest`: the seven parameters of `inner_op.forward`, then out_weight [D E]."""
    *parameters, out_weight = rest
    xz = _project(x, in_weight)
    y = inner_op.forward(kernels, xz, *_seven(parameters), keep=False)[0]
    return _project(y, out_weight)


def backward(kernels: Kernels, dy: Tensor, x: Tensor, in_weight: Tensor, *rest: Tensor) -> Ten:
    """Gradients of x and the nine parameters."""
    *parameters, out_weight = rest
    conv_weight, conv_bias, x_weight, dt_weight = parameters[:4]
    xz = _project(x, in_weight)
    u, projected, dt = inner_op.until_scan(kernels, xz, conv_weight, conv_bias, x_weight, dt_weight)
    dy = activation("gradient", dy, (*x.shape[:2], out_weight.shape[0]), x)
    flat_dy = dy.reshape(-1, dy.shape[2])
    dout = torch.mm(flat_dy, out_weight.to(x.dtype)).view(u.shape)
    out, kept = torch.empty_like(u), xz.new_empty(0)
    dxz, *gradients = inner_op.backward(kernels, dout, u, projected, dt, kept, xz, *_seven(parameters), out=out)
    dout_weight = torch.mm(flat_dy.t(), out.view(-1, out.shape[2]))
    flat = dxz.view(-1, dxz.shape[2])
    din_weight = torch.mm(flat.t(), x.reshape(-1, x.shape[2]))
    dx = torch.mm(flat, in_weight.to(x.dtype)).view(x.shape)
    g1, g2, g3, g4, g5, g6, g7 = gradients
    return dx, din_weight.to(in_weight.dtype), g1, g2, g3, g4, g5, g6, g7, dout_weight.to(out_weight.dtype)


def _seven(parameters: list[Tensor]) -> Seven:
    conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d = parameters
    return conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d


def _project(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x.reshape(-1, x.shape[2]), weight.to(x.dtype).t()).view(*x.shape[:2], weight.shape[0])


def _layer(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    out_weight: Tensor,
) -> Tensor:
    parameters = (in_weight, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d, out_weight)
    return forward(kernels_for(x), x, *parameters)


def _layer_fake(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    out_weight: Tensor,
) -> Tensor:
    return x.new_empty((*x.shape[:2], out_weight.shape[0]))


def _layer_backward(
    dy: Tensor,
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    out_weight: Tensor,
) -> Ten:
    parameters = (in_weight, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d, out_weight)
    return backward(kernels_for(x), dy, x, *parameters)


def _layer_backward_fake(
    dy: Tensor,
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    out_weight: Tensor,
) -> Ten:
    like = (x, in_weight, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, a_log, d, out_weight)
    g0, g1, g2, g3, g4, g5, g6, g7, g8, g9 = (t.new_empty(t.shape) for t in like)
    return g0, g1, g2, g3, g4, g5, g6, g7, g8, g9


_OPERATOR = define("mamba_layer", _layer, _layer_fake)
_BACKWARD = define("mamba_layer_backward", _layer_backward, _layer_backward_fake)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _without_gradient(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        gradients: Ten = _BACKWARD(dy, *ctx.saved_tensors)
        return gradients


def _without_gradient(*inputs: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        y: Tensor = _OPERATOR(*inputs)
    return y


def _with_gradient(*inputs: Tensor) -> Any:
    return _Differentiable.apply(*inputs) if wants_gradient(*inputs) else _without_gradient(*inputs)


LIBRARY.impl("mamba_layer", _with_gradient, "Autograd")


def computing_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of x are computed in: under autocast its dtype, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def layer(x: Tensor, *parameters: Tensor) -> Tensor:
    """in_proj → everything of `inner_op.inner` → out_proj: x [B L D] to [B L D].

    parameters: in_weight [2E D], the seven of `inner_op.inner`, out_weight [D E].

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    y: Tensor = _OPERATOR(x.to(computing_dtype(x)), *parameters)
    return y
