# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined"
"""What runs on the GPU: the Triton programs of the convolution and the selective scan. `triton_kernels` starts them.

Letters: B batch, L time steps, E inner channels, N states a channel (BN: padded to a power of two), BE channels and BT
steps of one program, K taps. An argument x comes with x_b and x_t, its strides of B and L; the last stride is 1.

The scan runs one program for a block of channels of one sequence. Its state is a tile [N, channels] with a thread to a
channel, so the sum over states stays inside a thread. The backward program walks chunks of STEPS steps from the last to
the first: it recomputes a chunk's states from the kept one into a scratch area (which stays in the L2 cache), then goes
back through them.
"""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """max(x, 0) + log1p(w), w = e^-|x|, where log1p(w) = 2 atanh(w / (2 + w)): good to 5e-9 of it."""
    w = tl.exp(-tl.abs(x))
    s = w / (2.0 + w)
    q = s * s
    p = 0.33333206566363577 + q * (0.20010849529673932 + q * (0.13999570532891958 + q * 0.14012229456819897))
    return tl.where(x > 0, x, 0.0) + tl.where(x == x, 2.0 * (s + s * q * p), x)


@triton.jit
def _number(p, on):
    return tl.load(p, mask=on, other=0.0).to(tl.float32)


@triton.jit
def scan_forward(
    u, u_b, u_t,
    dt, dt_b, dt_t,
    z, z_b, z_t,
    b, b_b, b_t,
    c, c_b, c_t,
    dt_bias, a, d, h0, h_last, kept, out,
    L, E,
    N: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, STEPS: tl.constexpr,
    HAS_H0: tl.constexpr, HAS_LAST: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    n = tl.arange(0, BN)
    on_e, on_n = e < E, n < N
    on = on_n[:, None] & on_e[None, :]
    at_state = batch * E * N + e[None, :] * N + n[:, None]
    decay = tl.load(a + e[None, :] * N + n[:, None], mask=on, other=0.0) * 1.4426950408889634
    bias = tl.load(dt_bias + e, mask=on_e, other=0.0)
    skip = tl.load(d + e, mask=on_e, other=0.0)
    h = tl.zeros((BN, BE), dtype=tl.float32)
    if HAS_H0:
        h = tl.load(h0 + at_state, mask=on, other=0.0)
    u += batch * u_b + e
    dt += batch * dt_b + e
    z += batch * z_b + e
    b += batch * b_b + n
    c += batch * c_b + n
    out += batch * L * E + e
    # A step's inputs are asked for while the step before is computed.
    u_next, dt_next, z_next = _number(u, on_e), _number(dt, on_e), _number(z, on_e)
    b_next, c_next = _number(b, on_n), _number(c, on_n)
    chunks = tl.cdiv(L, STEPS)
    for chunk in range(0, chunks):
        if KEEP:
            at_kept = (batch * chunks + chunk) * N * E + n[:, None] * E + e[None, :]
            tl.store(kept + at_kept, h, mask=on)
        for t in range(chunk * STEPS, tl.minimum(chunk * STEPS + STEPS, L)):
            u_now, delta, z_now, b_now, c_now = u_next, _softplus(dt_next + bias), z_next, b_next, c_next
            later = tl.minimum(t + 1, L - 1)
            u_next = _number(u + later * u_t, on_e)
            dt_next = _number(dt + later * dt_t, on_e)
            z_next = _number(z + later * z_t, on_e)
            b_next = _number(b + later * b_t, on_n)
            c_next = _number(c + later * c_t, on_n)
            h = tl.exp2(delta[None, :] * decay) * h + (delta * u_now)[None, :] * b_now[:, None]
            y = tl.sum(h * c_now[:, None], axis=0) + skip * u_now
            y = y * (z_now * _sigmoid(z_now))
            tl.store(out + t * E, y.to(out.dtype.element_ty), mask=on_e)
    if HAS_LAST:
        tl.store(h_last + at_state, h, mask=on)


@triton.jit
def scan_backward(
    u, u_b, u_t,
    dt, dt_b, dt_t,
    z, z_b, z_t,
    b, b_b, b_t,
    c, c_b, c_t,
    dout, dout_b, dout_t,
    du, du_b, du_t,
    ddt, ddt_b, ddt_t,
    dz, dz_b, dz_t,
    dt_bias, a, d, kept, dh_last, scratch, db, dc, da, ddt_bias, dd, dh0,
    B, L, E,
    N: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, STEPS: tl.constexpr,
    HAS_DLAST: tl.constexpr, HAS_DH0: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    e = block * BE + tl.arange(0, BE)
    n = tl.arange(0, BN)
    on_e, on_n = e < E, n < N
    on = on_n[:, None] & on_e[None, :]
    at_state = batch * E * N + e[None, :] * N + n[:, None]
    real = tl.load(a + e[None, :] * N + n[:, None], mask=on, other=0.0)
    decay = real * 1.4426950408889634
    bias = tl.load(dt_bias + e, mask=on_e, other=0.0)
    skip = tl.load(d + e, mask=on_e, other=0.0)
    u += batch * u_b + e
    dt += batch * dt_b + e
    z += batch * z_b + e
    b += batch * b_b + n
    c += batch * c_b + n
    dout += batch * dout_b + e
    du += batch * du_b + e
    ddt += batch * ddt_b + e
    dz += batch * dz_b + e
    db += (block * B + batch) * L * N + n
    dc += (block * B + batch) * L * N + n
    scratch += (batch * tl.num_programs(1) + block) * STEPS * BN * BE
    scratch += n[:, None] * BE + tl.arange(0, BE)[None, :]

    flow = tl.zeros((BN, BE), dtype=tl.float32)  # a[t+1] * dL/dh[t+1]
    if HAS_DLAST:
        flow = tl.load(dh_last + at_state, mask=on, other=0.0)
    da_sum = tl.zeros((BN, BE), dtype=tl.float32)
    bias_sum = tl.zeros((BE,), dtype=tl.float32)
    skip_sum = tl.zeros((BE,), dtype=tl.float32)
    chunks = tl.cdiv(L, STEPS)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        first = chunk * STEPS
        steps = tl.minimum(STEPS, L - first)
        h = tl.load(kept + (batch * chunks + chunk) * N * E + n[:, None] * E + e[None, :], mask=on, other=0.0)
        u_next = _number(u + first * u_t, on_e)
        dt_next = _number(dt + first * dt_t, on_e)
        b_next = _number(b + first * b_t, on_n)
        for i in range(0, steps):  # states before each step of the chunk
            tl.store(scratch + i * (BN * BE), h)
            u_now, delta, b_now = u_next, _softplus(dt_next + bias), b_next
            t = tl.minimum(first + i + 1, L - 1)
            u_next = _number(u + t * u_t, on_e)
            dt_next = _number(dt + t * dt_t, on_e)
            b_next = _number(b + t * b_t, on_n)
            h = tl.exp2(delta[None, :] * decay) * h + (delta * u_now)[None, :] * b_now[:, None]
        tl.debug_barrier()
        t = first + steps - 1
        before_next = tl.load(scratch + (steps - 1) * (BN * BE))
        u_next, dt_next, z_next = _number(u + t * u_t, on_e), _number(dt + t * dt_t, on_e), _number(z + t * z_t, on_e)
        b_next, c_next = _number(b + t * b_t, on_n), _number(c + t * c_t, on_n)
        dout_next = _number(dout + t * dout_t, on_e)
        for i in range(0, steps):
            t = first + steps - 1 - i
            before, u_now, raw, z_now = before_next, u_next, dt_next + bias, z_next
            b_now, c_now, dout_now = b_next, c_next, dout_next
            earlier = tl.maximum(t - 1, first)
            before_next = tl.load(scratch + (earlier - first) * (BN * BE))
            u_next = _number(u + earlier * u_t, on_e)
            dt_next = _number(dt + earlier * dt_t, on_e)
            z_next = _number(z + earlier * z_t, on_e)
            b_next = _number(b + earlier * b_t, on_n)
            c_next = _number(c + earlier * c_t, on_n)
            dout_next = _number(dout + earlier * dout_t, on_e)
            delta = _softplus(raw)
            drive = delta * u_now
            kept_part = tl.exp2(delta[None, :] * decay)
            h = kept_part * before + drive[None, :] * b_now[:, None]
            gate = _sigmoid(z_now)
            dy = dout_now * (z_now * gate)
            y = tl.sum(h * c_now[:, None], axis=0) + skip * u_now
            tl.store(dc + t * N, tl.sum(dy[None, :] * h, axis=1), mask=on_n)
            g = dy[None, :] * c_now[:, None] + flow
            tl.store(db + t * N, tl.sum(g * drive[None, :], axis=1), mask=on_n)
            by_b = tl.sum(g * b_now[:, None], axis=0)
            flow = kept_part * g
            w = flow * before  # dL/d(dt A)
            da_sum += w * delta[None, :]
            ddt_now = (u_now * by_b + tl.sum(w * real, axis=0)) * _sigmoid(raw)
            du_now = delta * by_b + dy * skip
            dz_now = dout_now * y * (gate * (1.0 + z_now * (1.0 - gate)))
            bias_sum += ddt_now
            skip_sum += dy * u_now
            tl.store(du + t * du_t, du_now.to(du.dtype.element_ty), mask=on_e)
            tl.store(ddt + t * ddt_t, ddt_now.to(ddt.dtype.element_ty), mask=on_e)
            tl.store(dz + t * dz_t, dz_now.to(dz.dtype.element_ty), mask=on_e)
        tl.debug_barrier()
    tl.store(da + at_state, da_sum, mask=on)
    tl.store(ddt_bias + batch * E + e, bias_sum, mask=on_e)
    tl.store(dd + batch * E + e, skip_sum, mask=on_e)
    if HAS_DH0:
        tl.store(dh0 + at_state, flow, mask=on)


@triton.jit
def _before_silu(x, x_t, weight, bias, t, e, L, E, K: tl.constexpr):
    """Convolution of a tile [steps, channels]; zeros before the start."""
    on_e = e < E
    total = tl.load(bias + e, mask=on_e, other=0.0)[None, :] + tl.zeros((t.shape[0], e.shape[0]), dtype=tl.float32)
    for k in tl.static_range(K):
        from_t = t - (K - 1) + k
        on = (from_t >= 0)[:, None] & (from_t < L)[:, None] & on_e[None, :]
        value = tl.load(x + from_t[:, None] * x_t + e[None, :], mask=on, other=0.0).to(tl.float32)
        total += value * tl.load(weight + e * K + k, mask=on_e, other=0.0)[None, :]
    return total


@triton.jit
def conv_forward(
    x, x_b, x_t, weight, bias, out, L, E, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    e = tl.program_id(2) * BE + tl.arange(0, BE)
    v = _before_silu(x + batch * x_b, x_t, weight, bias, t, e, L, E, K)
    on = (t < L)[:, None] & (e < E)[None, :]
    at = batch * L * E + t[:, None] * E + e[None, :]
    tl.store(out + at, (v * _sigmoid(v)).to(out.dtype.element_ty), mask=on)


@triton.jit
def conv_backward(
    x, x_b, x_t, dout, dout_b, dout_t, dx, dx_b, dx_t, weight, bias, dweight, dbias,
    L, E, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    block = batch * tl.num_programs(1) + tl.program_id(1)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    e = tl.program_id(2) * BE + tl.arange(0, BE)
    on_e = e < E
    x += batch * x_b
    dx_now = tl.zeros((BT, BE), dtype=tl.float32)
    for ahead in tl.static_range(K):  # dx[t] = sum over k of weight[K-1-k] g[t+k], g the gradient before the SiLU
        later = t + ahead
        on = (later < L)[:, None] & on_e[None, :]
        v = _before_silu(x, x_t, weight, bias, later, e, L, E, K)
        s = _sigmoid(v)
        g = tl.load(dout + batch * dout_b + later[:, None] * dout_t + e[None, :], mask=on, other=0.0).to(tl.float32)
        g = tl.where(on, g * (s * (1.0 + v * (1.0 - s))), 0.0)
        dx_now += g * tl.load(weight + e * K + (K - 1 - ahead), mask=on_e, other=0.0)[None, :]
        if ahead == 0:
            tl.store(dbias + block * E + e, tl.sum(g, axis=0), mask=on_e)
            for k in tl.static_range(K):
                from_t = t - (K - 1) + k
                on_x = (from_t >= 0)[:, None] & (from_t < L)[:, None] & on_e[None, :]
                value = tl.load(x + from_t[:, None] * x_t + e[None, :], mask=on_x, other=0.0).to(tl.float32)
                tl.store(dweight + (block * K + k) * E + e, tl.sum(g * value, axis=0), mask=on_e)
    on = (t < L)[:, None] & on_e[None, :]
    tl.store(dx + batch * dx_b + t[:, None] * dx_t + e[None, :], dx_now.to(dx.dtype.element_ty), mask=on)
