// Selective scan with softplus in front, skip and gate behind: forward and backward.
//
// Lanes are channels, so a state lives in one vector per n and needs no shuffles. A task is one sequence (or a
// group of its channels when there are few sequences); inside it time goes in chunks, and in a chunk one tile of
// W channels after another, so that what a tile needs stays in the nearest caches. The backward pass walks the
// chunks from the last to the first, recomputes the states of a chunk from the kept one, and never holds more.
//
// How the work is cut depends on the shape alone, never on the number of threads: results are the same bits for
// any number of threads.

#pragma once
#include "abi.h"
#include "vec.h"

namespace {

#if defined(__AVX512F__)
constexpr int NB = 16;  // states worked on at once, in registers
#else
constexpr int NB = 8;
#endif
constexpr int NB_BACK = 8;  // the same for the backward pass, whose states of a chunk must stay in the nearest cache

constexpr double LOG2E = 1.4426950408889634, LN2 = 0.6931471805599453;

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Bump allocation inside one scratch block.
struct Arena {
    char *at;
    template <class X> X *take(int64_t count) {
        X *out = (X *)at;
        at += (count * int64_t(sizeof(X)) + 63) & ~int64_t(63);
        return out;
    }
};

// One call: the arguments, the padded tables of per-channel numbers, and how the work is cut.
template <class T> struct Scan {
    using S = typename Acc<T>::type;
    using V = Vec<S>;
    static constexpr int W = Lanes<S>::W;

    const ScanArgs *args;
    int64_t tiles, padded;             // tiles of W channels; N rounded up to NB
    int64_t groups, group_tiles;       // channel groups of a sequence
    int64_t slabs, slab_rows;          // runs of sequences whose parameter gradients are summed together (backward)
    V *a2;                             // [tiles padded] A * log2(e)
    V *bias, *skip;                    // [tiles]
    V *da, *dbias, *dd;                // [slabs tiles padded], [slabs tiles] x2
    S *db, *dc;                        // [groups B L padded] when groups > 1

    static const T *row(const void *p, int64_t sb, int64_t st, int64_t b, int64_t t) { return (const T *)p + b * sb + t * st; }
    static T *row(void *p, int64_t sb, int64_t st, int64_t b, int64_t t) { return (T *)p + b * sb + t * st; }

    int lanes(int64_t tile) const { return int(smaller(W, args->E - tile * W)); }

    // Groups so that there are about `wanted` tasks, each with at least `least` tiles.
    void cut(int64_t wanted, int64_t least) {
        tiles = ceil_div(args->E, W);
        padded = ceil_div(args->N, NB) * NB;
        groups = larger(1, smaller(ceil_div(wanted, larger(1, args->B)), tiles / least));
        group_tiles = ceil_div(tiles, groups);
        groups = ceil_div(tiles, group_tiles);
    }

    void tables(Arena &arena) {
        a2 = arena.take<V>(tiles * padded);
        bias = arena.take<V>(tiles);
        skip = arena.take<V>(tiles);
        const S *a = (const S *)args->a;
        const int64_t N = args->N;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int count = lanes(tile);
            bias[tile] = load((const S *)args->dt_bias + tile * W, count);
            skip[tile] = load((const S *)args->d + tile * W, count);
            for (int64_t n = 0; n < padded; n++) {
                V v = {};
                if (n < N)
                    for (int i = 0; i < count; i++) v[i] = a[(tile * W + i) * N + n] * S(LOG2E);
                a2[tile * padded + n] = v;
            }
        }
    }

    // State of one tile from or to [E N] memory.
    void state_in(const void *memory, int64_t b, int64_t tile, V *h) const {
        const int count = lanes(tile);
        for (int64_t n = 0; n < padded; n++) h[n] = V{};
        if (!memory) return;
        const S *from = (const S *)memory + (b * args->E + tile * W) * args->N;
        for (int64_t n = 0; n < args->N; n++)
            for (int i = 0; i < count; i++) h[n][i] = from[i * args->N + n];
    }
    void state_out(void *memory, int64_t b, int64_t tile, const V *h) const {
        if (!memory) return;
        const int count = lanes(tile);
        S *to = (S *)memory + (b * args->E + tile * W) * args->N;
        for (int64_t n = 0; n < args->N; n++)
            for (int i = 0; i < count; i++) to[i * args->N + n] = h[n][i];
    }

    void rows_in(const void *p, int64_t sb, int64_t st, int64_t b, int64_t t0, int64_t steps, S *to) const {
        for (int64_t t = 0; t < steps; t++) {
            const T *from = row(p, sb, st, b, t0 + t);
            for (int64_t n = 0; n < padded; n++) to[t * padded + n] = n < args->N ? S(widen(from[n])) : S(0);
        }
    }

    S *kept(int64_t b, int64_t chunk) const {
        return (S *)args->kept + (b * ceil_div(args->L, CHUNK) + chunk) * args->N * args->E;
    }

    // A sequence, the first step of a chunk and the first channel of a tile.
    struct Place { int64_t b, t, e; };

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

    // Where the tile after this one begins. Rows are kilobytes apart, which the processor's own prefetcher does not follow:
    // while one tile is worked on, a step at a time, the lines of the next one are asked for.
    Place after(int64_t b, int64_t t0, int64_t tile, int64_t first, int64_t last, int64_t onward) const {
        return tile + 1 < last ? Place{b, t0, (tile + 1) * W} : Place{b, t0 + onward, first * W};
    }
    INLINE void fetch(const void *p, int64_t sb, int64_t st, const Place &at, int64_t t) {
        __builtin_prefetch(row(p, sb, st, at.b, at.t + t) + at.e, 0, 3);
    }
    INLINE void fetch_to_write(void *p, int64_t sb, int64_t st, const Place &at, int64_t t) {
        __builtin_prefetch(row(p, sb, st, at.b, at.t + t) + at.e, 1, 3);
    }

    // ---- forward ----

    int64_t forward_bytes() const {
        return int64_t(sizeof(V)) * (group_tiles * padded + 3 * CHUNK) + int64_t(sizeof(S)) * 2 * CHUNK * padded + 512;
    }

    void forward(int64_t task) const {
        const ScanArgs &p = *args;
        const int64_t b = task / groups, first = task % groups * group_tiles;
        const int64_t last = smaller(tiles, first + group_tiles);
        Arena arena{(char *)scratch(1, forward_bytes())};
        if (!arena.at) return;
        V *state = arena.take<V>(group_tiles * padded);
        V *delta = arena.take<V>(CHUNK), *drive = arena.take<V>(CHUNK), *y = arena.take<V>(CHUNK);
        S *brow = arena.take<S>(CHUNK * padded), *crow = arena.take<S>(CHUNK * padded);
        for (int64_t tile = first; tile < last; tile++) state_in(p.h0, b, tile, state + (tile - first) * padded);

        for (int64_t t0 = 0; t0 < p.L; t0 += CHUNK) {
            const int64_t steps = smaller(CHUNK, p.L - t0);
            rows_in(p.b, p.b_b, p.b_t, b, t0, steps, brow);
            rows_in(p.c, p.c_b, p.c_t, b, t0, steps, crow);
            for (int64_t tile = first; tile < last; tile++) {
                const Place here{b, t0, tile * W};
                const int count = lanes(tile);
                V *h = state + (tile - first) * padded;
                const Place next = after(b, t0, tile, first, last, CHUNK);
                if (p.kept)
                    for (int64_t n = 0; n < p.N; n++) store(kept(b, t0 / CHUNK) + n * p.E + here.e, h[n], count);
                for (int64_t t = 0; t < steps; t += GANG) {
                    const Gang<V> u = rows_of(p.u, p.u_b, p.u_t, here, t, steps, count);
                    Gang<V> slope;
                    const Gang<V> dt = softplus(rows_of(p.dt, p.dt_b, p.dt_t, here, t, steps, count) + bias[tile], slope);
                    put(delta + t, dt);
                    put(drive + t, dt * u);
                    put(y + t, u * skip[tile]);
                }
                for (int64_t n = 0; n < padded; n += NB) advance(steps, delta, drive, brow + n, crow + n, a2 + tile * padded + n, h + n, y, n ? nullptr : &next);
                for (int64_t t = 0; t < steps; t += GANG) {
                    const Gang<V> z = rows_of(p.z, p.z_b, p.z_t, here, t, steps, count);
                    rows_to(p.out, p.out_b, p.out_t, here, t, steps, count, gang(y + t) * (z * sigmoid(z)));
                }
            }
        }
        for (int64_t tile = first; tile < last; tile++) state_out(p.h_last, b, tile, state + (tile - first) * padded);
    }

    // NB states through one chunk.
    void advance(int64_t steps, const V *delta, const V *drive, const S *brow, const S *crow, const V *decay, V *state, V *y, const Place *next) const {
        Gang<V> h[NB / GANG];
        for (int i = 0; i < NB / GANG; i++) h[i] = gang(state + i * GANG);
        for (int64_t t = 0; t < steps; t++) {
            if (next) {
                fetch(args->u, args->u_b, args->u_t, *next, t);
                fetch(args->dt, args->dt_b, args->dt_t, *next, t);
                fetch(args->z, args->z_b, args->z_t, *next, t);
                fetch_to_write(args->out, args->out_b, args->out_t, *next, t);
            }
            const V dt = delta[t], du = drive[t];
            const S *bt = brow + t * padded, *ct = crow + t * padded;
            Gang<V> sum = {y[t], V{}, V{}, V{}};
#pragma GCC unroll 4
            for (int i = 0; i < NB / GANG; i++) {
                h[i] = exp2_of_products(dt, decay + i * GANG) * h[i] + du * broadcast<V>(bt + i * GANG);
                sum = sum + h[i] * broadcast<V>(ct + i * GANG);
            }
            y[t] = (sum.a + sum.b) + (sum.c + sum.d);
        }
        for (int i = 0; i < NB / GANG; i++) put(state + i * GANG, h[i]);
    }

    // ---- backward ----

    struct Chunk {  // what one tile needs of one chunk
        V delta[CHUNK], drive[CHUNK], u[CHUNK], slope[CHUNK], dy[CHUNK], gate_slope[CHUNK], y[CHUNK], by_b[CHUNK], by_a[CHUNK];
        V h[(CHUNK + 1) * NB_BACK], decay[CHUNK * NB_BACK];
    };

    int64_t backward_bytes() const {
        return int64_t(sizeof(Chunk)) + int64_t(sizeof(V)) * (group_tiles * padded + 2 * CHUNK * padded) +
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
        V *db_lanes = arena.take<V>(CHUNK * padded), *dc_lanes = arena.take<V>(CHUNK * padded);
        S *brow = arena.take<S>(CHUNK * padded), *crow = arena.take<S>(CHUNK * padded);
        V *da_sum = da + slab * tiles * padded, *dbias_sum = dbias + slab * tiles, *dd_sum = dd + slab * tiles;
        for (int64_t i = first * padded; i < last * padded; i++) da_sum[i] = V{};
        for (int64_t i = first; i < last; i++) dbias_sum[i] = dd_sum[i] = V{};

        for (int64_t b = slab * slab_rows; b < smaller(p.B, (slab + 1) * slab_rows); b++) {
            for (int64_t tile = first; tile < last; tile++) state_in(p.dh_last, b, tile, carried + (tile - first) * padded);
            for (int64_t chunk = ceil_div(p.L, CHUNK) - 1; chunk >= 0; chunk--) {
                const int64_t t0 = chunk * CHUNK, steps = smaller(CHUNK, p.L - t0);
                rows_in(p.b, p.b_b, p.b_t, b, t0, steps, brow);
                rows_in(p.c, p.c_b, p.c_t, b, t0, steps, crow);
                for (int64_t i = 0; i < steps * padded; i++) db_lanes[i] = dc_lanes[i] = V{};
                for (int64_t tile = first; tile < last; tile++) {
                    const Place next = after(b, t0, tile, first, last, -CHUNK);
                    const Place here{b, t0, tile * W};
                    chunk_in(here, steps, tile, *k);
                    for (int64_t n = 0; n < padded; n += NB_BACK) {
                        recompute(b, chunk, steps, tile, n, brow + n, crow + n, *k, dc_lanes + n, next);
                        reverse(steps, brow + n, crow + n, a2 + tile * padded + n, *k, db_lanes + n,
                                da_sum + tile * padded + n, carried + (tile - first) * padded + n, n ? nullptr : &next);
                    }
                    chunk_out(here, steps, tile, *k, dbias_sum[tile], dd_sum[tile]);
                }
                lanes_out(db_lanes, group, b, t0, steps, p.db, p.db_b, p.db_t, db);
                lanes_out(dc_lanes, group, b, t0, steps, p.dc, p.dc_b, p.dc_t, dc);
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
    void recompute(int64_t b, int64_t chunk, int64_t steps, int64_t tile, int64_t n0, const S *brow, const S *crow, Chunk &k, V *dc_lanes, const Place &next) const {
        const S *from = kept(b, chunk) + n0 * args->E + tile * W;
        const S *ahead = from + (next.e - tile * W) + (next.t / CHUNK - chunk) * args->N * args->E;
        for (int n = 0; n < NB_BACK; n++) {
            k.h[n] = n0 + n < args->N ? load(from + n * args->E, lanes(tile)) : V{};
            __builtin_prefetch(ahead + n * args->E, 0, 3);
        }
        Gang<V> h[NB_BACK / GANG];
        for (int i = 0; i < NB_BACK / GANG; i++) h[i] = gang(k.h + i * GANG);
        const V *decay = a2 + tile * padded + n0;
        for (int64_t t = 0; t < steps; t++) {
            if (n0 == 0) {
                fetch(args->u, args->u_b, args->u_t, next, t);
                fetch(args->dt, args->dt_b, args->dt_t, next, t);
                fetch(args->z, args->z_b, args->z_t, next, t);
                fetch(args->dout, args->dout_b, args->dout_t, next, t);
            }
            const V dt = k.delta[t], du = k.drive[t], dy = k.dy[t];
            const S *bt = brow + t * padded, *ct = crow + t * padded;
            V *dct = dc_lanes + t * padded, *ht = k.h + (t + 1) * NB_BACK, *at = k.decay + t * NB_BACK;
            Gang<V> sum = {k.y[t], V{}, V{}, V{}};
#pragma GCC unroll 4
            for (int i = 0; i < NB_BACK / GANG; i++) {
                const Gang<V> a = exp2_of_products(dt, decay + i * GANG);
                h[i] = a * h[i] + du * broadcast<V>(bt + i * GANG);
                put(at + i * GANG, a);
                put(ht + i * GANG, h[i]);
                put(dct + i * GANG, gang(dct + i * GANG) + dy * h[i]);
                sum = sum + h[i] * broadcast<V>(ct + i * GANG);
            }
            k.y[t] = (sum.a + sum.b) + (sum.c + sum.d);
        }
    }

    // g[t] = dL/dh[t] = dy[t] C[t] + a[t+1] g[t+1]; `carried` is a[t+1] g[t+1] across chunks.
    void reverse(int64_t steps, const S *brow, const S *crow, const V *decay, Chunk &k, V *db_lanes, V *da_sum, V *carried, const Place *next) const {
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
            const S *bt = brow + t * padded, *ct = crow + t * padded;
            V *dbt = db_lanes + t * padded;
            const V *at = k.decay + t * NB_BACK, *before = k.h + t * NB_BACK;
            V by_b[2] = {k.by_b[t], V{}}, by_a[2] = {k.by_a[t], V{}};
#pragma GCC unroll 16
            for (int n = 0; n < NB_BACK; n++) {
                const V g = dy * ct[n] + flow[n];
                dbt[n] = dbt[n] + g * du;
                by_b[n % 2] += g * bt[n];
                flow[n] = at[n] * g;
                const V w = flow[n] * before[n];  // dL/d(dt A)
                by_a[n % 2] += w * decay[n];
                da_here[n] += w * dt;
            }
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

    // Sum over the lanes; straight to the gradient when one group has all channels, else to the group's part.
    void lanes_out(V *lanes_of, int64_t group, int64_t b, int64_t t0, int64_t steps, void *out, int64_t sb, int64_t st, S *parts) const {
        for (int64_t t = 0; t < steps; t++)
            for (int64_t n = 0; n < args->N; n += W) {
                V v[W];
                for (int i = 0; i < W; i++) v[i] = n + i < padded ? lanes_of[t * padded + n + i] : V{};
                const V sums = sums_of<S>(v);
                const int count = int(smaller(W, args->N - n));
                if (groups == 1) store(row(out, sb, st, b, t0 + t) + n, sums, count);
                else store(parts + ((group * args->B + b) * args->L + t0 + t) * padded + n, sums, count);
            }
    }

    // ---- backward, second pass: fixed-order sums of the tasks' parts ----

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

template <class T> int scan_forward(const ScanArgs *args) {
    Scan<T> scan;
    scan.args = args;
    scan.cut(16, 2);
    using V = typename Scan<T>::V;
    Arena arena{(char *)scratch(0, int64_t(sizeof(V)) * scan.tiles * (scan.padded + 2) + 512)};
    if (!arena.at) return 1;
    scan.tables(arena);
    run_tasks(args->threads, args->B * scan.groups, [](void *context, int64_t task) {
        FlushDenormals flush;
        ((Scan<T> *)context)->forward(task);
    }, &scan);
    return 0;
}

template <class T> int scan_backward(const ScanArgs *args) {
    Scan<T> scan;
    scan.args = args;
    scan.cut(4, 4);
    scan.slab_rows = larger(1, ceil_div(args->B, 64));
    scan.slabs = ceil_div(args->B, scan.slab_rows);
    using V = typename Scan<T>::V;
    using S = typename Scan<T>::S;
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
        ((Scan<T> *)context)->backward(task);
    }, &scan);
    run_tasks(args->threads, scan.tiles, [](void *context, int64_t tile) { ((Scan<T> *)context)->finish_tile(tile); }, &scan);
    if (scan.groups > 1)
        run_tasks(args->threads, args->B, [](void *context, int64_t b) { ((Scan<T> *)context)->finish_row(b); }, &scan);
    return 0;
}

}  // namespace
