// Causal depthwise convolution with SiLU: forward and backward.
//
// Rows are worked on in the order they lie in memory; a task is a run of blocks of BLOCK time steps, cut by the
// shape alone so that results do not depend on the number of threads.

#pragma once
#include "abi.h"
#include "scan.h"
#include "vec.h"

namespace {

template <class T> struct Conv {
    using S = typename Acc<T>::type;
    using V = Vec<S>;
    static constexpr int W = Lanes<S>::W;
    static constexpr int64_t BLOCK = 64;

    const ConvArgs *args;
    int64_t tiles, blocks, items, slabs, slab_items;
    V *weight, *bias;       // [K tiles], [tiles]
    V *dweight, *dbias;     // [slabs K tiles], [slabs tiles]

    int lanes(int64_t tile) const { return int(smaller(W, args->E - tile * W)); }
    const T *x(int64_t b, int64_t t) const { return (const T *)args->x + b * args->x_b + t * args->x_t; }

    void cut() {
        tiles = ceil_div(args->E, W);
        blocks = ceil_div(args->L, BLOCK);
        items = args->B * blocks;
        slab_items = ceil_div(items, 64);
        slabs = items ? ceil_div(items, slab_items) : 0;
    }

    void tables(Arena &arena) {
        weight = arena.take<V>(args->K * tiles);
        bias = arena.take<V>(tiles);
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int count = lanes(tile);
            bias[tile] = load((const S *)args->bias + tile * W, count);
            for (int64_t k = 0; k < args->K; k++) {
                V v = {};
                for (int i = 0; i < count; i++) v[i] = ((const S *)args->weight)[(tile * W + i) * args->K + k];
                weight[k * tiles + tile] = v;
            }
        }
    }

    // Convolution of one tile at step t; before the start there are zeros.
    INLINE V before_silu(const Conv &c, int64_t b, int64_t t, int64_t tile, int count) {
        const int64_t K = c.args->K;
        V sum = c.bias[tile];
        for (int64_t k = larger(0, K - 1 - t); k < K; k++)
            sum += c.weight[k * c.tiles + tile] * load(c.x(b, t - (K - 1) + k) + tile * W, count);
        return sum;
    }

    void forward(int64_t slab) const {
        for (int64_t item = slab * slab_items; item < smaller(items, (slab + 1) * slab_items); item++) {
            const int64_t b = item / blocks, t0 = item % blocks * BLOCK;
            for (int64_t t = t0; t < smaller(args->L, t0 + BLOCK); t++)
                for (int64_t tile = 0; tile < tiles; tile++) {
                    const int count = lanes(tile);
                    const V v = before_silu(*this, b, t, tile, count);
                    store((T *)args->out + b * args->out_b + t * args->out_t + tile * W, v * sigmoid(v), count);
                }
        }
    }

    // Gradients before the SiLU go through a ring of K rows: that of dx[t] needs those of steps t … t+K-1.
    void backward(int64_t slab) const {
        const ConvArgs &p = *args;
        const int64_t K = p.K;
        Arena arena{(char *)scratch(1, int64_t(sizeof(V)) * K * tiles + 64)};
        if (!arena.at) return;
        V *ring = arena.take<V>(K * tiles);
        V *dw = dweight + slab * K * tiles, *dbias_sum = dbias + slab * tiles;
        for (int64_t i = 0; i < K * tiles; i++) dw[i] = V{};
        for (int64_t i = 0; i < tiles; i++) dbias_sum[i] = V{};
        for (int64_t item = slab * slab_items; item < smaller(items, (slab + 1) * slab_items); item++) {
            const int64_t b = item / blocks, t0 = item % blocks * BLOCK, t1 = smaller(p.L, t0 + BLOCK);
            for (int64_t i = 0; i < K * tiles; i++) ring[i] = V{};
            for (int64_t t = t0; t < t1 + K - 1; t++) {
                V *now = ring + t % K * tiles;
                for (int64_t tile = 0; tile < tiles; tile++) {
                    const int count = lanes(tile);
                    V g = {};
                    if (t < p.L) {
                        const V v = before_silu(*this, b, t, tile, count), s = sigmoid(v);
                        g = load((const T *)p.dout + b * p.dout_b + t * p.dout_t + tile * W, count) * (s * (S(1) + v * (S(1) - s)));
                    }
                    now[tile] = g;
                    if (t < t1) {
                        dbias_sum[tile] += g;
                        for (int64_t k = larger(0, K - 1 - t); k < K; k++)
                            dw[k * tiles + tile] += g * load(x(b, t - (K - 1) + k) + tile * W, count);
                    }
                    const int64_t done = t - (K - 1);
                    if (done >= t0) {
                        V dx = {};
                        for (int64_t k = 0; k < K; k++) dx += weight[k * tiles + tile] * ring[(done + K - 1 - k) % K * tiles + tile];
                        store((T *)p.dx + b * p.dx_b + done * p.dx_t + tile * W, dx, count);
                    }
                }
            }
        }
    }

    void finish_tile(int64_t tile) const {
        const int count = lanes(tile);
        V sum = {};
        for (int64_t s = 0; s < slabs; s++) sum += dbias[s * tiles + tile];
        store((S *)args->dbias + tile * W, sum, count);
        for (int64_t k = 0; k < args->K; k++) {
            V v = {};
            for (int64_t s = 0; s < slabs; s++) v += dweight[(s * args->K + k) * tiles + tile];
            for (int i = 0; i < count; i++) ((S *)args->dweight)[(tile * W + i) * args->K + k] = v[i];
        }
    }
};

template <class T> int conv_forward(const ConvArgs *args) {
    Conv<T> conv;
    conv.args = args;
    conv.cut();
    using V = typename Conv<T>::V;
    Arena arena{(char *)scratch(0, int64_t(sizeof(V)) * conv.tiles * (args->K + 1) + 512)};
    if (!arena.at) return 1;
    conv.tables(arena);
    run_tasks(args->threads, conv.slabs, [](void *context, int64_t slab) {
        FlushDenormals flush;
        ((Conv<T> *)context)->forward(slab);
    }, &conv);
    return 0;
}

template <class T> int conv_backward(const ConvArgs *args) {
    Conv<T> conv;
    conv.args = args;
    conv.cut();
    using V = typename Conv<T>::V;
    Arena arena{(char *)scratch(0, int64_t(sizeof(V)) * (conv.slabs + 1) * conv.tiles * (args->K + 1) + 1024)};
    if (!arena.at) return 1;
    conv.tables(arena);
    conv.dweight = arena.take<V>(conv.slabs * args->K * conv.tiles);
    conv.dbias = arena.take<V>(conv.slabs * conv.tiles);
    run_tasks(args->threads, conv.slabs, [](void *context, int64_t slab) {
        FlushDenormals flush;
        ((Conv<T> *)context)->backward(slab);
    }, &conv);
    run_tasks(args->threads, conv.tiles, [](void *context, int64_t tile) { ((Conv<T> *)context)->finish_tile(tile); }, &conv);
    return 0;
}

}  // namespace
