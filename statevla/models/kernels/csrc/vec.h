// Vectors of float or double as wide as the instruction set being compiled for, and the few functions the kernels need.
//
// No standard-library templates here: this header is compiled once per instruction set, and an inline library
// function built with AVX-512 could replace the portable copy when the objects are linked.

#pragma once
#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VEC_BYTES 64
#elif defined(__AVX2__)
#include <immintrin.h>
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif

namespace {

struct bf16 { uint16_t bits; };

template <class S> struct Lanes;
template <> struct Lanes<float> {
    static constexpr int W = VEC_BYTES / 4;
    typedef float V __attribute__((vector_size(VEC_BYTES)));
    typedef int32_t I __attribute__((vector_size(VEC_BYTES)));
};
template <> struct Lanes<double> {
    static constexpr int W = VEC_BYTES / 8;
    typedef double V __attribute__((vector_size(VEC_BYTES)));
    typedef int64_t I __attribute__((vector_size(VEC_BYTES)));
};
template <class S> using Vec = typename Lanes<S>::V;

typedef Vec<float> vf;
typedef Vec<double> vd;
typedef Lanes<float>::I vi;
typedef uint32_t vu __attribute__((vector_size(VEC_BYTES)));
typedef uint16_t vh __attribute__((vector_size(VEC_BYTES / 2)));

template <class T> struct Acc { using type = float; };
template <> struct Acc<double> { using type = double; };

#define INLINE static inline __attribute__((always_inline))

template <class S> INLINE Vec<S> splat(S x) { return x - Vec<S>{}; }

// ---- memory ----

INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
}

INLINE vf load_all(const float *p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE vd load_all(const double *p) { vd v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE vf load_all(const bf16 *p) {
    vh half;
    __builtin_memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

INLINE void store_all(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE void store_all(double *p, vd v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE void store_all(bf16 *p, vf v) {  // round to nearest even; a NaN stays a NaN
    vu bits = (vu)v;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu quiet = (bits >> 16) | 0x40u;
    vu nan = (vu)((vi)(v != v));
    vh half = __builtin_convertvector((nan & quiet) | (~nan & rounded), vh);
    __builtin_memcpy(p, &half, sizeof half);
}

// `count` lanes, zeros (load) or nothing (store) beyond.
template <class T> INLINE Vec<typename Acc<T>::type> load(const T *p, int count) {
    using S = typename Acc<T>::type;
    if (__builtin_expect(count == Lanes<S>::W, 1)) return load_all(p);
    T part[Lanes<S>::W] = {};
    for (int i = 0; i < count; i++) part[i] = p[i];
    return load_all(part);
}

template <class T> INLINE void store(T *p, Vec<typename Acc<T>::type> v, int count) {
    using S = typename Acc<T>::type;
    if (__builtin_expect(count == Lanes<S>::W, 1)) return store_all(p, v);
    T part[Lanes<S>::W];
    store_all(part, v);
    for (int i = 0; i < count; i++) p[i] = part[i];
}

// ---- arithmetic ----

// max(a, b); b where a is NaN or b is.
INLINE vf max_or_second(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}
INLINE vd max_or_second(vd a, vd b) { return a > b ? a : b; }

INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }

// 1/x for x in [1, 2], one unit in the last place
INLINE vf reciprocal(vf x) {
#if defined(__AVX512F__)
    vf r = (vf)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// 2^(k + f) for whole k and f in [-1/2, 1/2]: polynomial 1 + f q(f) fitted for least relative error (9e-8).
INLINE vf exp2_parts(vf k, vf shifted, vf f) {
#if defined(__AVX512F__)
    f = max_or_second(f, splat(-1.0f));  // also turns the NaN of inf - inf into a number; NaN stays in k
#endif
    vf q = f * 0.0013264727065334314f + 0.00967151264891081f;
    q = f * q + 0.05550733743690989f;
    q = f * q + 0.2402224208517325f;
    q = f * q + 0.6931469775988572f;
    vf p = f * q + 1.0f;
#if defined(__AVX512F__)
    (void)shifted;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)k);
#else
    (void)k;
    return (vf)((vi)p + ((vi)shifted << 23));  // the low bits of `shifted` hold k
#endif
}

constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number

// 2^(x * y)
INLINE vf exp2_of_product(vf x, vf y) {
#if defined(__AVX512F__)
    vf shifted = x * y + ROUNDER;
    vf k = shifted - ROUNDER;
    return exp2_parts(k, shifted, x * y - k);
#else
    vf p = max_or_second(splat(-126.0f), x * y);
    p = -max_or_second(splat(-128.0f), -p);
    vf shifted = p + ROUNDER;
    vf k = shifted - ROUNDER;
    return exp2_parts(k, shifted, p - k);
#endif
}

INLINE vd exp2_of_product(vd x, vd y) {
    vd out;
    for (int i = 0; i < Lanes<double>::W; i++) out[i] = __builtin_exp2(x[i] * y[i]);
    return out;
}

// e^x for x <= 0
INLINE vf exp_negative(vf x) {
    constexpr float hi = 1.44269502162933349609375f, lo = 1.92596299112661746887e-8f;  // log2(e)
#if !defined(__AVX512F__)
    x = max_or_second(splat(-87.0f), x);
#endif
    vf shifted = x * hi + ROUNDER;
    vf k = shifted - ROUNDER;
    return exp2_parts(k, shifted, x * lo + (x * hi - k));
}

INLINE vf sigmoid(vf x) {
    vf w = exp_negative(-absolute(x));
    vf r = reciprocal(1.0f + w);
    return x < 0.0f ? w * r : r;
}
INLINE vd sigmoid(vd x) {
    vd out;
    for (int i = 0; i < Lanes<double>::W; i++) out[i] = 1.0 / (1.0 + __builtin_exp(-x[i]));
    return out;
}

// log(1 + e^x), and its slope sigmoid(x). log1p(w) = 2 atanh(w / (2 + w)); the polynomial is good to 5e-9.
INLINE vf softplus(vf x, vf &slope) {
    vf w = exp_negative(-absolute(x));
    vf r = reciprocal(1.0f + w);
    slope = x < 0.0f ? w * r : r;
    vf s = w * (0.5f * reciprocal(1.0f + 0.5f * w));
    vf q = s * s;
    vf p = q * 0.14012229456819897f + 0.13999570532891958f;
    p = q * p + 0.20010849529673932f;
    p = q * p + 0.33333206566363577f;
    return max_or_second(splat(0.0f), x) + 2.0f * (s + s * q * p);
}
INLINE vd softplus(vd x, vd &slope) {  // linear above 20, as PyTorch has it
    vd out;
    for (int i = 0; i < Lanes<double>::W; i++) {
        out[i] = x[i] > 20.0 ? x[i] : __builtin_log1p(__builtin_exp(x[i]));
        slope[i] = x[i] > 20.0 ? 1.0 : 1.0 / (1.0 + __builtin_exp(-x[i]));
    }
    return out;
}

// ---- across lanes ----

template <class V> struct IndexOf;
template <> struct IndexOf<vf> { typedef Lanes<float>::I type; };
template <> struct IndexOf<vd> { typedef Lanes<double>::I type; };

// Sums of W vectors: lane i of the result is the sum of v[i]'s lanes. Overwrites v.
template <class S> INLINE Vec<S> sums_of(Vec<S> *v) {
    constexpr int W = Lanes<S>::W;
    typedef typename IndexOf<Vec<S>>::type Index;
    for (int step = 1; step < W; step *= 2) {
        Index even = {}, odd = {};
        for (int i = 0; i < W; i++) {  // of a pair: lanes with bit `step` clear from the first, set from the second
            int from = (i & step) ? W : 0;
            even[i] = (i & ~step) + from;
            odd[i] = (i | step) + from;
        }
        for (int i = 0; i < W; i += 2 * step)
            v[i] = __builtin_shuffle(v[i], v[i + step], even) + __builtin_shuffle(v[i], v[i + step], odd);
    }
    return v[0];
}

// Decayed states would end in denormal numbers, which are a hundred times slower: flush them while a task runs.
struct FlushDenormals {
#if defined(__SSE2__)
    unsigned saved = __builtin_ia32_stmxcsr();
    FlushDenormals() { __builtin_ia32_ldmxcsr(saved | 0x8040u); }
    ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved); }
#else
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
};

}  // namespace
