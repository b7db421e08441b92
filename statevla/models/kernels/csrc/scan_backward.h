// Selective scan, backward.
//
// Walks the chunks from the last to the first, recomputes the states of a chunk from the kept one, and never holds more.
// One tile after another: a band's working set would not stay in the nearest cache.

#pragma once
#include "scan.h"

namespace {

constexpr int NB_BACK = 8;  // states worked on at once; those of a chunk must stay in the nearest cache

template <class T> struct Backward : Scan<T> {
    using typename Scan<T>::S;
    using typename Scan<T>::V;
    using typename Scan<T>::Place;
    using typename Scan<T>::Numbers;
    using Scan<T>::W;
    using Scan<T>::args, Scan<T>::tiles, Scan<T>::padded, Scan<T>::groups, Scan<T>::group_tiles, Scan<T>::slabs, Scan<T>::slab_rows;
    using Scan<T>::a2, Scan<T>::bias, Scan<T>::skip, Scan<T>::da, Scan<T>::dbias, Scan<T>::dd, Scan<T>::db, Scan<T>::dc;
    using Scan<T>::row, Scan<T>::lanes, Scan<T>::state_in, Scan<T>::state_out, Scan<T>::numbers, Scan<T>::kept;

    // Rows t … t+3 of a tile's chunk. Beyond the chunk's end the last row is read again, and nothing is written.
    INLINE Gang<V> rows_of(const void *p, int64_t sb, int64_t st, const Place &at, int64_t t, int64_t steps, int count) {
        const T *from = row(p, sb, st, at.b, at.t + t) + at.e;
        const int64_t left = steps - 1 - t;
        return {load(from, count), load(from + smaller(1, left) * st, count), load(from + smaller(2, left) * st, count),
                load(from + smaller(3, left) * st, count)};
    }
    INLINE void rows_to(void *p, int64_t sb, int64_t st, const Place &at, int64_t t, int64_t steps, int count, const Gang<V> &x) {
        T *to = row(p, sb, st, at.b, at.t + t) + at.e;
        store(to, x.a, count);
        if (t + 1 < steps) store(to + st, x.b, count);
        if (t + 2 < steps) store(to + 2 * st, x.c, count);
        if (t + 3 < steps) store(to + 3 * st, x.d, count);
    }

    // Sums over channels (dL/dB, dL/dC) of NB_BACK states, folded as far as the states fill a vector: what is kept between
    // tiles then is small enough to stay in the nearest cache beside a tile's states.
    static constexpr int FOLD = NB_BACK < W ? NB_BACK : W;  // states in one vector
    INLINE void add_sums(V *to, V *parts) {
        fold<S, NB_BACK>(parts);
#pragma GCC unroll 8
        for (int i = 0; i < NB_BACK / FOLD; i++) to[i] += parts[i];
    }

    // Where the tile after this one begins. Rows are kilobytes apart, which the processor's own prefetcher does not follow:
    // while one tile is worked on, a step at a time, the lines of the next one are asked for.
    static Place after(int64_t b, int64_t t0, int64_t tile, int64_t first, int64_t last) {
        return tile + 1 < last ? Place{b, t0, (tile + 1) * W} : Place{b, t0 - CHUNK, first * W};
    }
    INLINE void fetch(const void *p, int64_t sb, int64_t st, const Place &at, int64_t t) {
        __builtin_prefetch(row(p, sb, st, at.b, at.t + t) + at.e, 0, 3);
    }
    INLINE void fetch_to_write(void *p, int64_t sb, int64_t st, const Place &at, int64_t t) {
        __builtin_prefetch(row(p, sb, st, at.b, at.t + t) + at.e, 1, 3);
    }

    struct Chunk {  // what one tile needs of one chunk
        V delta[CHUNK], drive[CHUNK], u[CHUNK], slope[CHUNK], dy[CHUNK], gate_slope[CHUNK], y[CHUNK], by_b[CHUNK], by_a[CHUNK];
        V h[(CHUNK + 1) * NB_BACK], decay[CHUNK * NB_BACK];
    };

    int64_t backward_bytes() const {
        return int64_t(sizeof(Chunk)) + int64_t(sizeof(V)) * (group_tiles * padded + 2 * CHUNK * (padded / FOLD)) +
               int64_t(sizeof(S)) * 2 * CHUNK * padded + 512;
    }

    void backward(int64_t task) const {
        const ScanArgs &p = *args;
        const int64_t slab = task / groups, group = task % groups, first = group * group_tiles;
        const int64_t last = smaller(tiles, first + group_tiles);
        Arena arena{(char *)scratch(1, backward_bytes())};
        if (!arena.at) return;
        Chunk *k = arena.take<Chunk>(1);
        V *carried = arena.take<V>(group_tiles * padded);
        V *db_sums = arena.take<V>(CHUNK * (padded / FOLD)), *dc_sums = arena.take<V>(CHUNK * (padded / FOLD));
        S *b_copy = arena.take<S>(CHUNK * padded), *c_copy = arena.take<S>(CHUNK * padded);
        V *da_sum = da + slab * tiles * padded, *dbias_sum = dbias + slab * tiles, *dd_sum = dd + slab * tiles;
        for (int64_t i = first * padded; i < last * padded; i++) da_sum[i] = V{};
        for (int64_t i = first; i < last; i++) dbias_sum[i] = dd_sum[i] = V{};

        for (int64_t b = slab * slab_rows; b < smaller(p.B, (slab + 1) * slab_rows); b++) {
            for (int64_t tile = first; tile < last; tile++) state_in(p.dh_last, b, tile, carried + (tile - first) * padded);
            for (int64_t chunk = ceil_div(p.L, CHUNK) - 1; chunk >= 0; chunk--) {
                const int64_t t0 = chunk * CHUNK, steps = smaller(CHUNK, p.L - t0);
                const Numbers bs = numbers(p.b, p.b_b, p.b_t, b, t0, steps, b_copy), cs = numbers(p.c, p.c_b, p.c_t, b, t0, steps, c_copy);
                for (int64_t i = 0; i < steps * (padded / FOLD); i++) db_sums[i] = dc_sums[i] = V{};
                for (int64_t tile = first; tile < last && lanes(tile) > 0; tile++) {
                    const Place next = after(b, t0, tile, first, last);
                    const Place here{b, t0, tile * W};
                    chunk_in(here, steps, tile, *k);
                    for (int64_t n = 0; n < p.N; n += NB_BACK) {
                        const Numbers bn{bs.at + n, bs.step}, cn{cs.at + n, cs.step};
                        recompute(b, chunk, steps, tile, n, bn, cn, *k, dc_sums + n / FOLD, next);
                        reverse(steps, bn, cn, a2 + tile * padded + n, *k, db_sums + n / FOLD,
                                da_sum + tile * padded + n, carried + (tile - first) * padded + n, n ? nullptr : &next);
                    }
                    chunk_out(here, steps, tile, *k, dbias_sum[tile], dd_sum[tile]);
                }
                sums_out(db_sums, group, b, t0, steps, p.db, p.db_b, p.db_t, db);
                sums_out(dc_sums, group, b, t0, steps, p.dc, p.dc_b, p.dc_t, dc);
            }
            for (int64_t tile = first; tile < last; tile++) state_out(p.dh0, b, tile, carried + (tile - first) * padded);
        }
    }

    void chunk_in(const Place &here, int64_t steps, int64_t tile, Chunk &k) const {
        const ScanArgs &p = *args;
        const int count = lanes(tile);
        for (int64_t t = 0; t < steps; t += GANG) {
            const Gang<V> u = rows_of(p.u, p.u_b, p.u_t, here, t, steps, count);
            Gang<V> slope;
            const Gang<V> dt = softplus(rows_of(p.dt, p.dt_b, p.dt_t, here, t, steps, count) + bias[tile], slope);
            put(k.delta + t, dt);
            put(k.slope + t, slope);
            put(k.u + t, u);
            put(k.drive + t, dt * u);
            put(k.y + t, u * skip[tile]);
            const Gang<V> z = rows_of(p.z, p.z_b, p.z_t, here, t, steps, count);
            const Gang<V> dout = rows_of(p.dout, p.dout_b, p.dout_t, here, t, steps, count);
            const Gang<V> s = sigmoid(z);
            put(k.dy + t, dout * (z * s));
            put(k.gate_slope + t, dout * (s * (z * (S(1) - s) + S(1))));
            put(k.by_b + t, Gang<V>{});
            put(k.by_a + t, Gang<V>{});
        }
    }

    // States and decays of a chunk, once more; also y, and dL/dC.
    void recompute(int64_t b, int64_t chunk, int64_t steps, int64_t tile, int64_t n0, const Numbers &bs, const Numbers &cs, Chunk &k, V *dc_sums, const Place &next) const {
        const int count = lanes(tile);
        const S *from = kept(b, chunk, tile) + n0 * count;
        for (int n = 0; n < NB_BACK; n++) {
            k.h[n] = n0 + n < args->N ? load(from + n * count, count) : V{};
        }
        Gang<V> h[NB_BACK / GANG];
        for (int i = 0; i < NB_BACK / GANG; i++) h[i] = gang(k.h + i * GANG);
        const V *decay = a2 + tile * padded + n0;
        for (int64_t t = 0; t < steps; t++) {
            if (n0 + NB_BACK >= args->N) {  // the last states: asked for earlier, the lines would be pushed out again
                fetch(args->u, args->u_b, args->u_t, next, t);
                fetch(args->dt, args->dt_b, args->dt_t, next, t);
                fetch(args->z, args->z_b, args->z_t, next, t);
                fetch(args->dout, args->dout_b, args->dout_t, next, t);
            }
            const V dt = k.delta[t], du = k.drive[t], dy = k.dy[t];
            const S *bt = bs.at + t * bs.step, *ct = cs.at + t * cs.step;
            V *ht = k.h + (t + 1) * NB_BACK, *at = k.decay + t * NB_BACK;
            Gang<V> sum = {k.y[t], V{}, V{}, V{}};
            V by_c[NB_BACK];
#pragma GCC unroll 4
            for (int i = 0; i < NB_BACK / GANG; i++) {
                const Gang<V> a = exp2_of_products(dt, decay + i * GANG);
                h[i] = a * h[i] + du * broadcast<V>(bt + i * GANG);
                put(at + i * GANG, a);
                put(ht + i * GANG, h[i]);
                put(by_c + i * GANG, dy * h[i]);
                sum = sum + h[i] * broadcast<V>(ct + i * GANG);
            }
            k.y[t] = (sum.a + sum.b) + (sum.c + sum.d);
            add_sums(dc_sums + t * (padded / FOLD), by_c);
        }
    }

    // g[t] = dL/dh[t] = dy[t] C[t] + a[t+1] g[t+1]; `carried` is a[t+1] g[t+1] across chunks.
    void reverse(int64_t steps, const Numbers &bs, const Numbers &cs, const V *decay, Chunk &k, V *db_sums, V *da_sum, V *carried, const Place *next) const {
        V flow[NB_BACK], da_here[NB_BACK];
        for (int n = 0; n < NB_BACK; n++) {
            flow[n] = carried[n];
            da_here[n] = da_sum[n];
        }
        for (int64_t t = steps - 1; t >= 0; t--) {
            if (next) {
                fetch_to_write(args->du, args->du_b, args->du_t, *next, t);
                fetch_to_write(args->ddt, args->ddt_b, args->ddt_t, *next, t);
                fetch_to_write(args->dz, args->dz_b, args->dz_t, *next, t);
            }
            const V dt = k.delta[t], du = k.drive[t], dy = k.dy[t];
            const S *bt = bs.at + t * bs.step, *ct = cs.at + t * cs.step;
            const V *at = k.decay + t * NB_BACK, *before = k.h + t * NB_BACK;
            V dbt[NB_BACK], by_b[2] = {k.by_b[t], V{}}, by_a[2] = {k.by_a[t], V{}};
#pragma GCC unroll 16
            for (int n = 0; n < NB_BACK; n++) {
                const V g = dy * ct[n] + flow[n];
                dbt[n] = g * du;
                by_b[n % 2] += g * bt[n];
                flow[n] = at[n] * g;
                const V w = flow[n] * before[n];  // dL/d(dt A)
                by_a[n % 2] += w * decay[n];
                da_here[n] += w * dt;
            }
            add_sums(db_sums + t * (padded / FOLD), dbt);
            k.by_b[t] = by_b[0] + by_b[1];
            k.by_a[t] = by_a[0] + by_a[1];
        }
        for (int n = 0; n < NB_BACK; n++) {
            carried[n] = flow[n];
            da_sum[n] = da_here[n];
        }
    }

    void chunk_out(const Place &here, int64_t steps, int64_t tile, const Chunk &k, V &dbias_sum, V &dd_sum) const {
        const ScanArgs &p = *args;
        const int count = lanes(tile);
        V bias_part = {}, skip_part = {};
        for (int64_t t = 0; t < steps; t += GANG) {
            const Gang<V> by_b = gang(k.by_b + t), dy = gang(k.dy + t);
            const Gang<V> ddt = (gang(k.u + t) * by_b + gang(k.by_a + t) * S(LN2)) * gang(k.slope + t);
            rows_to(p.du, p.du_b, p.du_t, here, t, steps, count, gang(k.delta + t) * by_b + dy * skip[tile]);
            rows_to(p.ddt, p.ddt_b, p.ddt_t, here, t, steps, count, ddt);
            rows_to(p.dz, p.dz_b, p.dz_t, here, t, steps, count, gang(k.y + t) * gang(k.gate_slope + t));
            const V ddts[GANG] = {ddt.a, ddt.b, ddt.c, ddt.d};
            for (int i = 0; i < smaller(GANG, steps - t); i++) {
                bias_part += ddts[i];
                skip_part += k.dy[t + i] * k.u[t + i];
            }
        }
        dbias_sum += bias_part;
        dd_sum += skip_part;
    }

    // The rest of the fold; straight to the gradient when one group has all channels, else to the group's part.
    void sums_out(const V *sums, int64_t group, int64_t b, int64_t t0, int64_t steps, void *out, int64_t sb, int64_t st, S *parts) const {
        for (int64_t t = 0; t < steps; t++)
            for (int64_t n = 0; n < args->N; n += W) {
                V v[W / FOLD];
                for (int i = 0; i < W / FOLD; i++) v[i] = n + i * FOLD < padded ? sums[t * (padded / FOLD) + n / FOLD + i] : V{};
                fold<S, W / FOLD, FOLD>(v);
                const int count = int(smaller(W, args->N - n));
                if (groups == 1) store(row(out, sb, st, b, t0 + t) + n, v[0], count);
                else store(parts + ((group * args->B + b) * args->L + t0 + t) * padded + n, v[0], count);
            }
    }

    // ---- second pass: fixed-order sums of the tasks' parts ----

    void finish_tile(int64_t tile) const {
        const int count = lanes(tile);
        V bias_part = {}, skip_part = {};
        for (int64_t s = 0; s < slabs; s++) {
            bias_part += dbias[s * tiles + tile];
            skip_part += dd[s * tiles + tile];
        }
        store((S *)args->ddt_bias + tile * W, bias_part, count);
        store((S *)args->dd + tile * W, skip_part, count);
        for (int64_t n = 0; n < args->N; n++) {
            V v = {};
            for (int64_t s = 0; s < slabs; s++) v += da[(s * tiles + tile) * padded + n];
            for (int i = 0; i < count; i++) ((S *)args->da)[(tile * W + i) * args->N + n] = v[i];
        }
    }

    void finish_row(int64_t b) const {
        const int64_t plane = args->B * args->L * padded;
        for (int64_t t = 0; t < args->L; t++)
            for (int64_t n = 0; n < args->N; n += W) {
                const int count = int(smaller(W, args->N - n));
                const int64_t at = (b * args->L + t) * padded + n;
                V vb = {}, vc = {};
                for (int64_t g = 0; g < groups; g++) {
                    vb += load(db + g * plane + at, count);
                    vc += load(dc + g * plane + at, count);
                }
                store(row(args->db, args->db_b, args->db_t, b, t) + n, vb, count);
                store(row(args->dc, args->dc_b, args->dc_t, b, t) + n, vc, count);
            }
    }
};

template <class T> int scan_backward(const ScanArgs *args) {
    Backward<T> scan;
    scan.args = args;
    scan.cut(4);
    scan.slab_rows = larger(1, ceil_div(args->B, 64));
    scan.slabs = ceil_div(args->B, scan.slab_rows);
    using V = typename Backward<T>::V;
    using S = typename Backward<T>::S;
    const int64_t parts = scan.groups == 1 ? 0 : scan.groups * args->B * args->L * scan.padded;
    Arena arena{(char *)scratch(0, int64_t(sizeof(V)) * (scan.slabs + 1) * scan.tiles * (scan.padded + 2) + 2 * parts * int64_t(sizeof(S)) + 1024)};
    if (!arena.at) return 1;
    scan.tables(arena);
    scan.da = arena.take<V>(scan.slabs * scan.tiles * scan.padded);
    scan.dbias = arena.take<V>(scan.slabs * scan.tiles);
    scan.dd = arena.take<V>(scan.slabs * scan.tiles);
    scan.db = arena.take<S>(parts);
    scan.dc = arena.take<S>(parts);
    run_tasks(args->threads, scan.slabs * scan.groups, [](void *context, int64_t task) {
        FlushDenormals flush;
        ((Backward<T> *)context)->backward(task);
    }, &scan);
    run_tasks(args->threads, scan.tiles, [](void *context, int64_t tile) { ((Backward<T> *)context)->finish_tile(tile); }, &scan);
    if (scan.groups > 1)
        run_tasks(args->threads, args->B, [](void *context, int64_t b) { ((Backward<T> *)context)->finish_row(b); }, &scan);
    return 0;
}

}  // namespace
