# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined, assignment"
# ruff: noqa: RUF005  (Triton does not unpack tuples)
"""The Triton programs of the causal depthwise convolution with its SiLU. `triton_kernels` starts them.

Letters: B batch, L time steps, E channels, K taps; BE channels and BT steps of one program. An argument x comes with
x_b and x_t, its strides of B and L; the last stride is 1. Tensors without strides are contiguous.

A lane has some neighbouring channels and slides over time: every input is read once, in registers are the last K.
"""

import triton
import triton.language as tl

from statevla.models.kernels.triton_scan import _sigmoid, _upto


@triton.jit
def _weights(weight, e, on_e, K: tl.constexpr):
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight + e * K + k, mask=on_e, other=0.0),)
    return taps


@triton.jit(do_not_specialize=("L",))
def conv_forward(
    x, x_b, x_t, weight, bias, out, L, E, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    """SiLU of bias + sum over k of weight[k] x[t-K+1+k], zeros before the start."""
    batch = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BT
    e = tl.program_id(2) * BE + tl.arange(0, BE)
    on_e = e < E
    x += batch * x_b + e
    out += batch * L * E + e
    taps, offset = _weights(weight, e, on_e, K), tl.load(bias + e, mask=on_e, other=0.0)
    window = ()
    for i in tl.static_range(BT + K - 1):
        t = first + i - (K - 1)
        window = window + (tl.load(x + t * x_t, mask=e < _upto(E, (t >= 0) & (t < L)), other=0.0),)
    for i in tl.static_range(BT):
        v = offset
        for k in tl.static_range(K):
            v += window[i + k].to(tl.float32) * taps[k]
        tl.store(out + (first + i) * E, (v * _sigmoid(v)).to(out.dtype.element_ty), mask=e < _upto(E, first + i < L))


@triton.jit(do_not_specialize=("L",))
def conv_backward(
    x, x_b, x_t, dout, dout_b, dout_t, dx, dx_b, dx_t, weight, bias, dweight, dbias,
    L, E, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """dx[t] = sum over k of weight[K-1-k] g[t+k], g the gradient before the SiLU. `dweight` [B blocks K E] and `dbias`
    [B blocks E] are parts of a block of steps."""
    batch = tl.program_id(0).to(tl.int64)
    block = batch * tl.num_programs(1) + tl.program_id(1)
    first = tl.program_id(1) * BT
    e = tl.program_id(2) * BE + tl.arange(0, BE)
    on_e = e < E
    x += batch * x_b + e
    dout += batch * dout_b + e
    dx += batch * dx_b + e
    taps, offset = _weights(weight, e, on_e, K), tl.load(bias + e, mask=on_e, other=0.0)
    window, douts = (), ()
    for i in tl.static_range(BT + 2 * (K - 1)):
        t = first + i - (K - 1)
        window = window + (tl.load(x + t * x_t, mask=e < _upto(E, (t >= 0) & (t < L)), other=0.0),)
    for i in tl.static_range(BT + K - 1):
        douts = douts + (tl.load(dout + (first + i) * dout_t, mask=e < _upto(E, first + i < L), other=0.0),)
    gs, dbias_sum = (), tl.zeros((BE,), dtype=tl.float32)
    for i in tl.static_range(BT + K - 1):
        v = offset
        for k in tl.static_range(K):
            v += window[i + k].to(tl.float32) * taps[k]
        s = _sigmoid(v)
        g = douts[i].to(tl.float32) * (s + v * s * (1.0 - s))
        gs = gs + (g,)
        if i < BT:
            dbias_sum += g
        if i >= K - 1:
            dx_now = tl.zeros((BE,), dtype=tl.float32)
            for k in tl.static_range(K):
                dx_now += gs[i - (K - 1) + k] * taps[K - 1 - k]
            t = first + i - (K - 1)
            tl.store(dx + t * dx_t, dx_now.to(dx.dtype.element_ty), mask=e < _upto(E, t < L))
    tl.store(dbias + block * E + e, dbias_sum, mask=on_e)
    for k in tl.static_range(K):
        total = tl.zeros((BE,), dtype=tl.float32)
        for i in tl.static_range(BT):
            total += gs[i] * window[i + k].to(tl.float32)
        tl.store(dweight + (block * K + k) * E + e, total, mask=on_e)
