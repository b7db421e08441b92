// Selective scan with softplus in front, skip and gate behind: what its two directions share.
//
// Lanes are channels, so a state lives in one vector per n and needs no shuffles. W channels are a tile, GANG tiles
// next to each other a band. A task is one sequence (or a group of its bands when there are few sequences); inside it
// time goes in chunks, and in a chunk one band after another: rows are read and written a whole band wide, and between
// reading and writing everything a band needs lies packed in the nearest caches.
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
    int64_t tiles, padded;             // tiles of W channels, a whole number of bands; N rounded up to NB
    int64_t groups, group_tiles;       // channel groups of a sequence
    int64_t slabs, slab_rows;          // runs of sequences whose parameter gradients are summed together (backward)
    V *a2;                             // [tiles padded] A * log2(e)
    V *bias, *skip;                    // [tiles]
    V *da, *dbias, *dd;                // [slabs tiles padded], [slabs tiles] x2
    S *db, *dc;                        // [groups B L padded] when groups > 1

    static const T *row(const void *p, int64_t sb, int64_t st, int64_t b, int64_t t) { return (const T *)p + b * sb + t * st; }
    static T *row(void *p, int64_t sb, int64_t st, int64_t b, int64_t t) { return (T *)p + b * sb + t * st; }

    // Channels of a tile: W, fewer in the last one, 0 in those that only fill up the last band.
    int lanes(int64_t tile) const { return int(larger(0, smaller(W, args->E - tile * W))); }
    bool whole(int64_t tile) const { return (tile + GANG) * W <= args->E; }  // of the band that begins with `tile`

    // Groups of whole bands so that there are about `wanted` tasks.
    void cut(int64_t wanted) {
        const int64_t bands = ceil_div(args->E, GANG * W);
        tiles = bands * GANG;
        padded = ceil_div(args->N, NB) * NB;
        groups = larger(1, smaller(ceil_div(wanted, larger(1, args->B)), bands));
        group_tiles = ceil_div(bands, groups) * GANG;
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
            S *to = (S *)(a2 + tile * padded);
            for (int64_t n = 0; n < padded; n++)
                for (int i = 0; i < W; i++) to[n * W + i] = n < N && i < count ? a[(tile * W + i) * N + n] * S(LOG2E) : S(0);
        }
    }

    // State of one tile from or to [E N] memory.
    void state_in(const void *memory, int64_t b, int64_t tile, V *h) const {
        const int count = lanes(tile);
        for (int64_t n = 0; n < padded; n++) h[n] = V{};
        if (!memory) return;
        const S *from = (const S *)memory + (b * args->E + tile * W) * args->N;
        S *to = (S *)h;
        for (int i = 0; i < count; i++)
            for (int64_t n = 0; n < args->N; n++) to[n * W + i] = from[i * args->N + n];
    }
    void state_out(void *memory, int64_t b, int64_t tile, const V *h) const {
        if (!memory) return;
        const int count = lanes(tile);
        S *to = (S *)memory + (b * args->E + tile * W) * args->N;
        const S *from = (const S *)h;
        for (int i = 0; i < count; i++)
            for (int64_t n = 0; n < args->N; n++) to[i * args->N + n] = from[n * W + i];
    }

    // Rows of B or C of one chunk, `padded` numbers each, `step` apart: where they lie if that is what they are, else a copy.
    struct Numbers { const S *at; int64_t step; };
    Numbers numbers(const void *p, int64_t sb, int64_t st, int64_t b, int64_t t0, int64_t steps, S *copy) const {
        const T *from = row(p, sb, st, b, t0);
        if constexpr (sizeof(T) == sizeof(S))
            if (args->N == padded) return {from, st};
        const int64_t N = args->N, width = padded;
        for (int64_t t = 0; t < steps; t++) {
            for (int64_t n = 0; n < N; n++) copy[t * width + n] = S(widen(from[t * st + n]));
            for (int64_t n = N; n < width; n++) copy[t * width + n] = S(0);
        }
        return {copy, width};
    }

    // States before a chunk, of one tile: N vectors of as many lanes as the tile has.
    S *kept(int64_t b, int64_t chunk, int64_t tile) const {
        return (S *)args->kept + ((b * ceil_div(args->L, CHUNK) + chunk) * args->E + tile * W) * args->N;
    }

    // A sequence, the first step of a chunk and the first channel of a band.
    struct Place { int64_t b, t, e; };
};

}  // namespace
