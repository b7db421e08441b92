// Selective scan, forward.

#pragma once
#include "scan.h"

namespace {

template <class T> struct Forward {
    using S = typename Acc<T>::type;
    using V = Vec<S>;
    using Place = typename Scan<T>::Place;
    using Numbers = typename Scan<T>::Numbers;
    static constexpr int W = Lanes<S>::W;

    // The band after this one. Its rows are kilobytes apart, which the processor's own prefetcher does not follow: while a
    // tile is worked on, a step at a time, the lines of the next band's tile are asked for.
    static Place after(int64_t b, int64_t t0, int64_t tile, int64_t first, int64_t last) {
        return tile + GANG < last ? Place{b, t0, (tile + GANG) * W} : Place{b, t0 + CHUNK, first * W};
    }
    struct Lines {
        const char *at;
        int64_t step;
        INLINE void fetch(const Lines &of, int64_t t) { __builtin_prefetch(of.at + t * of.step, 0, 3); }
        INLINE void fetch_to_write(const Lines &of, int64_t t) { __builtin_prefetch(of.at + t * of.step, 1, 3); }
    };
    static Lines lines(const void *p, int64_t sb, int64_t st, const Place &at, int64_t tile_of_band) {
        return {(const char *)(Scan<T>::row(p, sb, st, at.b, at.t) + at.e + tile_of_band * W), st * int64_t(sizeof(T))};
    }

    struct Band {  // one band's chunk: [step][tile]
        V delta[CHUNK * GANG], drive[CHUNK * GANG], y[CHUNK * GANG];
    };

    static int64_t bytes(const Scan<T> &s) {
        return int64_t(sizeof(Band)) + int64_t(sizeof(V)) * s.group_tiles * s.padded + int64_t(sizeof(S)) * 2 * CHUNK * s.padded + 512;
    }

    // Softplus, and what does not need the states.
    template <bool WHOLE> NOINLINE static void before(const Scan<T> &s, const Place &at, int64_t steps, int64_t tile, Band &band) {
        const ScanArgs &p = *s.args;
        const T *u_row = s.row(p.u, p.u_b, p.u_t, at.b, at.t) + at.e, *dt_row = s.row(p.dt, p.dt_b, p.dt_t, at.b, at.t) + at.e;
        const int64_t u_t = p.u_t, dt_t = p.dt_t, left = p.E - at.e;
        const Gang<V> bias = gang(s.bias + tile), skip = gang(s.skip + tile);
        for (int64_t t = 0; t < steps; t++) {
            const Gang<V> u = load_band<WHOLE>(u_row + t * u_t, left);
            Gang<V> slope;
            const Gang<V> dt = softplus(load_band<WHOLE>(dt_row + t * dt_t, left) + bias, slope);
            put(band.delta + t * GANG, dt);
            put(band.drive + t * GANG, dt * u);
            put(band.y + t * GANG, u * skip);
        }
    }

    // The gate.
    template <bool WHOLE> NOINLINE static void behind(const Scan<T> &s, const Place &at, int64_t steps, const Band &band) {
        const ScanArgs &p = *s.args;
        const T *z_row = s.row(p.z, p.z_b, p.z_t, at.b, at.t) + at.e;
        T *out_row = s.row(p.out, p.out_b, p.out_t, at.b, at.t) + at.e;
        const int64_t z_t = p.z_t, out_t = p.out_t, left = p.E - at.e;
        for (int64_t t = 0; t < steps; t++) {
            const Gang<V> z = load_band<WHOLE>(z_row + t * z_t, left);
            store_band<WHOLE>(out_row + t * out_t, gang(band.y + t * GANG) * (z * sigmoid(z)), left);
        }
    }

    // NB states of one tile through one chunk.
    template <bool FETCH> NOINLINE static void advance(const Scan<T> &s, int64_t steps, Band &band, int64_t i, const Numbers &b, const Numbers &c,
                                              const V *decay, V *state, const Place &next) {
        const ScanArgs &p = *s.args;
        const Lines u = lines(p.u, p.u_b, p.u_t, next, i), dt = lines(p.dt, p.dt_b, p.dt_t, next, i);
        const Lines z = lines(p.z, p.z_b, p.z_t, next, i), out = lines(p.out, p.out_b, p.out_t, next, i);
        Gang<V> h[NB / GANG];
        for (int j = 0; j < NB / GANG; j++) h[j] = gang(state + j * GANG);
        const V *delta = band.delta + i, *drive = band.drive + i;
        V *y = band.y + i;
        const S *bt = b.at, *ct = c.at;
        const int64_t b_step = b.step, c_step = c.step;
        for (int64_t t = 0; t < steps; t++, bt += b_step, ct += c_step) {
            if (FETCH) {
                Lines::fetch(u, t);
                Lines::fetch(dt, t);
                Lines::fetch(z, t);
                Lines::fetch_to_write(out, t);
            }
            const V d = delta[t * GANG], du = drive[t * GANG];
            Gang<V> sum = {y[t * GANG], V{}, V{}, V{}};
#pragma GCC unroll 4
            for (int j = 0; j < NB / GANG; j++) {
                h[j] = exp2_of_products(d, decay + j * GANG) * h[j] + du * broadcast<V>(bt + j * GANG);
                sum = sum + h[j] * broadcast<V>(ct + j * GANG);
            }
            y[t * GANG] = (sum.a + sum.b) + (sum.c + sum.d);
        }
        for (int j = 0; j < NB / GANG; j++) put(state + j * GANG, h[j]);
    }

    static void run(const Scan<T> &s, int64_t task) {
        const ScanArgs &p = *s.args;
        const int64_t b = task / s.groups, first = task % s.groups * s.group_tiles;
        const int64_t last = smaller(s.tiles, first + s.group_tiles);
        Arena arena{(char *)scratch(1, bytes(s))};
        if (!arena.at) return;
        Band &band = *arena.take<Band>(1);
        V *states = arena.take<V>(s.group_tiles * s.padded);
        S *b_copy = arena.take<S>(CHUNK * s.padded), *c_copy = arena.take<S>(CHUNK * s.padded);
        for (int64_t tile = first; tile < last; tile++) s.state_in(p.h0, b, tile, states + (tile - first) * s.padded);

        for (int64_t t0 = 0; t0 < p.L; t0 += CHUNK) {
            const int64_t steps = smaller(CHUNK, p.L - t0);
            const Numbers bs = s.numbers(p.b, p.b_b, p.b_t, b, t0, steps, b_copy), cs = s.numbers(p.c, p.c_b, p.c_t, b, t0, steps, c_copy);
            for (int64_t tile = first; tile < last; tile += GANG) {
                const Place here{b, t0, tile * W}, next = after(b, t0, tile, first, last);
                const bool whole = s.whole(tile);
                whole ? before<true>(s, here, steps, tile, band) : before<false>(s, here, steps, tile, band);
                for (int64_t i = 0; i < GANG && s.lanes(tile + i) > 0; i++) {
                    V *h = states + (tile + i - first) * s.padded;
                    const int count = s.lanes(tile + i);
                    if (p.kept) {
                        S *kept = s.kept(b, t0 / CHUNK, tile + i);
                        for (int64_t n = 0; n < p.N; n++) store(kept + n * count, h[n], count);
                    }
                    for (int64_t n = 0; n < s.padded; n += NB) {
                        const Numbers bn{bs.at + n, bs.step}, cn{cs.at + n, cs.step};
                        const V *decay = s.a2 + (tile + i) * s.padded + n;
                        n ? advance<false>(s, steps, band, i, bn, cn, decay, h + n, next) : advance<true>(s, steps, band, i, bn, cn, decay, h, next);
                    }
                }
                whole ? behind<true>(s, here, steps, band) : behind<false>(s, here, steps, band);
            }
        }
        for (int64_t tile = first; tile < last; tile++) s.state_out(p.h_last, b, tile, states + (tile - first) * s.padded);
    }
};

template <class T> int scan_forward(const ScanArgs *args) {
    Scan<T> scan;
    scan.args = args;
    scan.cut(16);
    using V = typename Scan<T>::V;
    Arena arena{(char *)scratch(0, int64_t(sizeof(V)) * scan.tiles * (scan.padded + 2) + 512)};
    if (!arena.at) return 1;
    scan.tables(arena);
    run_tasks(args->threads, args->B * scan.groups, [](void *context, int64_t task) {
        FlushDenormals flush;
        Forward<T>::run(*(const Scan<T> *)context, task);
    }, &scan);
    return 0;
}

}  // namespace
