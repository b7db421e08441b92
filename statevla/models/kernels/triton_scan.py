# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined, assignment"
# ruff: noqa: RUF005  (Triton does not unpack tuples)
"""The Triton programs of the selective scan. `triton_kernels` starts them.

Letters: B batch, L time steps, E inner channels, N states a channel. An argument x comes with x_b and x_t, its strides
of B and L; the last stride is 1. Tensors without strides are contiguous.

One program is a warp and has a block of channels of one sequence. Its state is a tile [NR ER NL EL] of NR NL states and
ER EL channels. The order of the four decides where a number lies: Triton deals the last two to the 32 lanes
(NL EL = 32), so that a lane holds NR ER numbers in registers; sums over NR and ER stay inside a lane, and only those
over NL and EL cross lanes. What belongs to a channel is [1 ER NL EL], what belongs to a state [NR 1 NL EL].

The forward program puts a whole channel into each lane: nothing crosses lanes. The backward pass begins with the same
program: it goes through the sequence again, hands the gate's gradient on and keeps a state every STEPS steps. Then
`scan_backward` goes from the last chunk of STEPS steps to the first: states forward into registers, gradients back.
"""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    """As the square of a reciprocal root, which is one instruction where a division is eight."""
    root = tl.rsqrt(1.0 + tl.exp(-x))
    return root * root


@triton.jit
def _softplus(x):
    """max(x, 0) + log1p(w), w = e^-|x|, where log1p(w) = 2 atanh(w / (2 + w))."""
    w = tl.exp(-tl.abs(x))
    root = tl.rsqrt(2.0 + w)
    s = w * root * root
    q = s * s
    p = 0.33333206566363577 + q * (0.20010849529673932 + q * (0.13999570532891958 + q * 0.14012229456819897))
    return tl.where(x > 0, x, 0.0) + tl.where(x == x, 2.0 * (s + s * q * p), x)


@triton.jit
def _slope(delta, EXACT: tl.constexpr):
    """The softplus' derivative from its value: 1 - e^-delta, EXACT by its series where the difference loses digits."""
    far = 1.0 - tl.exp(-delta)
    if EXACT:
        near = delta * (1.0 - delta * (0.5 - delta * (0.16666667 - delta * (0.041666668 - delta * 0.008333334))))
        far = tl.where(delta < 0.125, near, far)
    return far


@triton.jit
def _upto(size, valid):
    """Where a mask ends: at `size`, or before its beginning."""
    return tl.where(valid, size, 0)


@triton.jit
def _raw(p, t, stride, on):
    """Row t as it lies in memory, zeros outside the mask."""
    return tl.load(p + t * stride, mask=on, other=0.0)


@triton.jit
def _sum_states(x):
    return tl.sum(tl.sum(x, axis=0, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def _sum_channels(x):
    return tl.sum(tl.sum(x, axis=1, keep_dims=True), axis=3, keep_dims=True)


@triton.jit
def _channels(block, ER: tl.constexpr, NL: tl.constexpr, EL: tl.constexpr):
    """Channel of every place [1 ER NL EL]: neighbours in registers, so that a lane reads them at once."""
    er = tl.arange(0, ER)[None, :, None, None]
    el = tl.arange(0, EL)[None, None, None, :]
    return block * (ER * EL) + el * ER + er + 0 * tl.arange(0, NL)[None, None, :, None]


@triton.jit
def _states(NR: tl.constexpr, NL: tl.constexpr, EL: tl.constexpr):
    """State of every place [NR 1 NL EL]."""
    nr = tl.arange(0, NR)[:, None, None, None]
    nl = tl.arange(0, NL)[None, None, :, None]
    return nl * NR + nr + 0 * tl.arange(0, EL)[None, None, None, :]


@triton.jit(do_not_specialize=("L",))
def scan_forward(
    u, u_b, u_t,
    dt, dt_b, dt_t,
    z, z_b, z_t,
    b, b_b, b_t,
    c, c_b, c_t,
    dout, dout_b, dout_t,
    dz, dz_b, dz_t,
    dt_bias, a, d, h0, h_last, out, kept, delta, dy,
    L, E,
    N: tl.constexpr, NR: tl.constexpr, ER: tl.constexpr, NL: tl.constexpr, EL: tl.constexpr, STEPS: tl.constexpr,
    HAS_H0: tl.constexpr, HAS_LAST: tl.constexpr, HAS_OUT: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """`out`, `h_last`; with BACK, for the backward pass: `dz`, `delta` (the softplus), `dy` (the gradient before the
    gate) and `kept`, the state before every chunk."""
    batch = tl.program_id(0).to(tl.int64)
    e = _channels(tl.program_id(1), ER, NL, EL)
    n = _states(NR, NL, EL)
    on_e, on_n = e < E, n < N
    on = on_e & on_n
    once = on_e & (tl.arange(0, NL)[None, None, :, None] == 0)
    at_state = e * N + n
    decay = tl.load(a + at_state, mask=on, other=0.0) * 1.4426950408889634
    bias = tl.load(dt_bias + e, mask=on_e, other=0.0)
    skip = tl.load(d + e, mask=on_e, other=0.0)
    h = tl.zeros((NR, ER, NL, EL), dtype=tl.float32)
    if HAS_H0:
        h = tl.load(h0 + batch * E * N + at_state, mask=on, other=0.0)
    u += batch * u_b + e
    dt += batch * dt_b + e
    z += batch * z_b + e
    b += batch * b_b + n
    c += batch * c_b + n
    out += batch * L * E + e
    if BACK:
        dout += batch * dout_b + e
        dz += batch * dz_b + e
        delta += batch * L * E + e
        dy += batch * L * E + e
    chunks = tl.cdiv(L, STEPS)
    us, dts, zs, douts, bs, cs = (), (), (), (), (), ()
    for i in tl.static_range(STEPS):
        on_t, on_b = e < _upto(E, i < L), n < _upto(N, i < L)
        us, dts = us + (_raw(u, i, u_t, on_t),), dts + (_raw(dt, i, dt_t, on_t),)
        zs = zs + (_raw(z, i, z_t, on_t),)
        bs, cs = bs + (_raw(b, i, b_t, on_b),), cs + (_raw(c, i, c_t, on_b),)
        if BACK:
            douts = douts + (_raw(dout, i, dout_t, on_t),)
    for chunk in range(0, chunks):
        first = chunk * STEPS
        us_now, dts_now, zs_now, douts_now, bs_now, cs_now = us, dts, zs, douts, bs, cs
        us, dts, zs, douts, bs, cs = (), (), (), (), (), ()
        for i in tl.static_range(STEPS):  # the next chunk is asked for before this one is computed
            t = first + STEPS + i
            on_t, on_b = e < _upto(E, t < L), n < _upto(N, t < L)
            us, dts = us + (_raw(u, t, u_t, on_t),), dts + (_raw(dt, t, dt_t, on_t),)
            zs = zs + (_raw(z, t, z_t, on_t),)
            bs, cs = bs + (_raw(b, t, b_t, on_b),), cs + (_raw(c, t, c_t, on_b),)
            if BACK:
                douts = douts + (_raw(dout, t, dout_t, on_t),)
        if BACK:
            tl.store(kept + (batch * chunks + chunk) * N * E + n * E + e, h.to(kept.dtype.element_ty), mask=on)
        for i in tl.static_range(STEPS):
            t = first + i
            valid = t < L
            step = tl.where(valid, _softplus(dts_now[i].to(tl.float32) + bias), 0.0)  # past the end the state stays
            u_now, z_now = us_now[i].to(tl.float32), zs_now[i].to(tl.float32)
            h = tl.exp2(step * decay) * h + (step * u_now) * bs_now[i].to(tl.float32)
            y = _sum_states(h * cs_now[i].to(tl.float32)) + skip * u_now
            gate = _sigmoid(z_now)
            silu = z_now * gate
            on_t = once & (e < _upto(E, valid))
            if HAS_OUT:
                tl.store(out + t * E, (y * silu).to(out.dtype.element_ty), mask=on_t)
            if BACK:
                dout_now = douts_now[i].to(tl.float32)
                dz_now = dout_now * y * (gate + silu * (1.0 - gate))
                tl.store(dz + t * dz_t, dz_now.to(dz.dtype.element_ty), mask=on_t)
                tl.store(dy + t * E, (dout_now * silu).to(dy.dtype.element_ty), mask=on_t)
                tl.store(delta + t * E, step, mask=on_t)
    if HAS_LAST:
        tl.store(h_last + batch * E * N + at_state, h, mask=on)


@triton.jit(do_not_specialize=("B", "L"))
def scan_backward(
    u, u_b, u_t,
    b, b_b, b_t,
    c, c_b, c_t,
    du, du_b, du_t,
    ddt, ddt_b, ddt_t,
    delta, dy, a, d, kept, dh_last, db, dc, da, ddt_bias, dd, dh0,
    B, L, E,
    N: tl.constexpr, NR: tl.constexpr, ER: tl.constexpr, NL: tl.constexpr, EL: tl.constexpr, STEPS: tl.constexpr,
    HAS_DLAST: tl.constexpr, HAS_DH0: tl.constexpr,
):  # fmt: skip
    """All gradients but z's. `db`, `dc` [blocks B L N] are parts of a block of channels; the sums over time `da`
    [B E N], `ddt_bias`, `dd` [B E] are parts of a sequence."""
    batch = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    e = _channels(block, ER, NL, EL)
    n = _states(NR, NL, EL)
    on_e, on_n = e < E, n < N
    on = on_e & on_n
    once_e = on_e & (tl.arange(0, NL)[None, None, :, None] == 0)
    once_n = on_n & (tl.arange(0, EL)[None, None, None, :] == 0)
    at_state = e * N + n
    decay = tl.load(a + at_state, mask=on, other=0.0) * 1.4426950408889634
    skip = tl.load(d + e, mask=on_e, other=0.0)
    u += batch * u_b + e
    b += batch * b_b + n
    c += batch * c_b + n
    du += batch * du_b + e
    ddt += batch * ddt_b + e
    delta += batch * L * E + e
    dy += batch * L * E + e
    db += (block * B + batch) * L * N + n
    dc += (block * B + batch) * L * N + n
    flow = tl.zeros((NR, ER, NL, EL), dtype=tl.float32)  # a[t+1] * dL/dh[t+1]
    if HAS_DLAST:
        flow = tl.load(dh_last + batch * E * N + at_state, mask=on, other=0.0)
    da_sum = tl.zeros((NR, ER, NL, EL), dtype=tl.float32)
    bias_sum = tl.zeros((1, ER, NL, EL), dtype=tl.float32)
    skip_sum = tl.zeros((1, ER, NL, EL), dtype=tl.float32)
    chunks = tl.cdiv(L, STEPS)
    kept += batch * chunks * N * E + n * E + e
    h_next = tl.load(kept + (chunks - 1).to(tl.int64) * N * E, mask=on, other=0.0)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        first = chunk * STEPS
        h = h_next.to(tl.float32)
        h_next = tl.load(kept + tl.maximum(chunk - 1, 0).to(tl.int64) * N * E, mask=on, other=0.0)
        hs, us, steps = (h,), (), ()
        for i in tl.static_range(STEPS):
            on_t = e < _upto(E, first + i < L)
            us = us + (tl.load(u + (first + i) * u_t, mask=on_t, other=0.0),)
            steps = steps + (tl.load(delta + (first + i) * E, mask=on_t, other=0.0),)
        for i in tl.static_range(STEPS):  # past the end delta is 0: the state stays, and so does the gradient's flow
            b_now = _raw(b, first + i, b_t, n < _upto(N, first + i < L)).to(tl.float32)
            h = tl.exp2(steps[i] * decay) * h + (steps[i] * us[i].to(tl.float32)) * b_now
            hs = hs + (h,)
        t = first + (STEPS - 1)
        on_t, on_b = e < _upto(E, t < L), n < _upto(N, t < L)
        u_next, step_next = tl.load(u + t * u_t, mask=on_t, other=0.0), tl.load(delta + t * E, mask=on_t, other=0.0)
        dy_next = tl.load(dy + t * E, mask=on_t, other=0.0)
        b_next, c_next = tl.load(b + t * b_t, mask=on_b, other=0.0), tl.load(c + t * c_t, mask=on_b, other=0.0)
        for j in tl.static_range(STEPS):
            t = first + (STEPS - 1 - j)
            on_now, on_n_now = e < _upto(E, t < L), n < _upto(N, t < L)
            before, h = hs[STEPS - 1 - j], hs[STEPS - j]
            step, u_now, dy_now = step_next, u_next.to(tl.float32), dy_next.to(tl.float32)
            b_now, c_now = b_next.to(tl.float32), c_next.to(tl.float32)
            if j + 1 < STEPS:  # no load passes a store: ask for the next step's before this one's are written
                on_t, on_b = e < _upto(E, t - 1 < L), n < _upto(N, t - 1 < L)
                u_next = tl.load(u + (t - 1) * u_t, mask=on_t, other=0.0)
                step_next = tl.load(delta + (t - 1) * E, mask=on_t, other=0.0)
                dy_next = tl.load(dy + (t - 1) * E, mask=on_t, other=0.0)
                b_next = tl.load(b + (t - 1) * b_t, mask=on_b, other=0.0)
                c_next = tl.load(c + (t - 1) * c_t, mask=on_b, other=0.0)
            tl.store(dc + t * N, _sum_channels(dy_now * h) + 0 * n, mask=once_n & on_n_now)
            g = dy_now * c_now + flow
            tl.store(db + t * N, _sum_channels(g * (step * u_now)) + 0 * n, mask=once_n & on_n_now)
            by_b = _sum_states(g * b_now)
            flow = tl.exp2(step * decay) * g
            w = flow * before  # dL/d(dt A)
            da_sum += w * step
            ddt_now = u_now * by_b + 0.6931471805599453 * _sum_states(w * decay)
            ddt_now *= _slope(step, du.dtype.element_ty == tl.float32)
            bias_sum += ddt_now
            skip_sum += dy_now * u_now
            tl.store(du + t * du_t, (step * by_b + dy_now * skip).to(du.dtype.element_ty), mask=once_e & on_now)
            tl.store(ddt + t * ddt_t, ddt_now.to(ddt.dtype.element_ty), mask=once_e & on_now)
    tl.store(da + batch * E * N + at_state, da_sum, mask=on)
    tl.store(ddt_bias + batch * E + e, bias_sum, mask=once_e)
    tl.store(dd + batch * E + e, skip_sum, mask=once_e)
    if HAS_DH0:
        tl.store(dh0 + batch * E * N + at_state, flow, mask=on)
