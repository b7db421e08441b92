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
#define NOINLINE __attribute__((noinline))  // one loop a function: the compiler's registers suffice

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

// Four vectors that go through a formula together, each step for all four before the next step. The formulas below are
// long chains of dependent steps, and a processor does not look far enough ahead to find the next vector's chain by
// itself. Written once for V and for Gang<V>.
constexpr int GANG = 4;
template <class V> struct Gang { V a, b, c, d; };

template <class V> struct ScalarOf;
template <> struct ScalarOf<vf> { using type = float; };
template <> struct ScalarOf<vd> { using type = double; };
template <class V> using Scalar = typename ScalarOf<V>::type;

#define GANG_OPERATOR(op)                                                                                             \
    template <class V> INLINE Gang<V> operator op(const Gang<V> &x, const Gang<V> &y) {                               \
        return {x.a op y.a, x.b op y.b, x.c op y.c, x.d op y.d};                                                      \
    }                                                                                                                 \
    template <class V> INLINE Gang<V> operator op(const Gang<V> &x, const V &y) {                                     \
        return {x.a op y, x.b op y, x.c op y, x.d op y};                                                              \
    }                                                                                                                 \
    template <class V> INLINE Gang<V> operator op(const Gang<V> &x, Scalar<V> y) {                                    \
        return {x.a op y, x.b op y, x.c op y, x.d op y};                                                              \
    }                                                                                                                 \
    template <class V> INLINE Gang<V> operator op(Scalar<V> x, const Gang<V> &y) {                                    \
        return {x op y.a, x op y.b, x op y.c, x op y.d};                                                              \
    }
GANG_OPERATOR(+)
GANG_OPERATOR(-)
GANG_OPERATOR(*)
template <class V> INLINE Gang<V> operator*(const V &x, const Gang<V> &y) { return {x * y.a, x * y.b, x * y.c, x * y.d}; }

// f of each of the four
#define GANG_FUNCTION(f) \
    template <class V> INLINE Gang<V> f(const Gang<V> &x) { return {f(x.a), f(x.b), f(x.c), f(x.d)}; }

// max(x, least), `least` where x is NaN
INLINE vf or_least(vf x, float least) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)x, (__m512)splat(least));
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)x, (__m256)splat(least));
#else
    return x > least ? x : splat(least);
#endif
}
// min(max(x, least), most), NaN where x is NaN
INLINE vf clamp(vf x, float least, float most) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)splat(most), _mm512_max_ps((__m512)splat(least), (__m512)x));
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)splat(most), _mm256_max_ps((__m256)splat(least), (__m256)x));
#else
    x = x < least ? splat(least) : x;
    return x > most ? splat(most) : x;
#endif
}
INLINE vf minus_absolute(vf x) { return (vf)((vi)x | (vi)splat(-0.0f)); }
INLINE vf positive_part(vf x) { return x < 0.0f ? vf{} : x; }
INLINE vf where_negative(vf x, vf yes, vf no) { return x < 0.0f ? yes : no; }

// 1/x for x in [1, 2], one unit in the last place
INLINE vf reciprocal(vf x) {
#if defined(__AVX512F__)
    vf r = (vf)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// x * 2^k for whole k; without a machine instruction, k is in the low bits of `shifted` and the result must be normal
#if defined(__AVX512F__)
INLINE vf scale(vf x, vf k, vf) { return (vf)_mm512_scalef_ps((__m512)x, (__m512)k); }
INLINE vf tame(vf x) { return or_least(x, -1.0f); }  // the NaN of inf - inf becomes a number; a NaN of x stays in k
INLINE vf from_nearest(vf x) { return (vf)_mm512_reduce_ps((__m512)x, 0); }  // x - round(x), 0 for an infinity
GANG_FUNCTION(from_nearest)
INLINE vf in_range(vf x, float) { return x; }
#else
INLINE vf scale(vf x, vf, vf shifted) { return (vf)((vi)x + ((vi)shifted << 23)); }
INLINE vf tame(vf x) { return x; }
INLINE vf in_range(vf x, float least) { return clamp(x, least, 128.0f); }
#endif

GANG_FUNCTION(minus_absolute)
GANG_FUNCTION(positive_part)
GANG_FUNCTION(reciprocal)
GANG_FUNCTION(tame)
template <class V> INLINE Gang<V> in_range(const Gang<V> &x, float least) {
    return {in_range(x.a, least), in_range(x.b, least), in_range(x.c, least), in_range(x.d, least)};
}
template <class V> INLINE Gang<V> scale(const Gang<V> &x, const Gang<V> &k, const Gang<V> &shifted) {
    return {scale(x.a, k.a, shifted.a), scale(x.b, k.b, shifted.b), scale(x.c, k.c, shifted.c), scale(x.d, k.d, shifted.d)};
}
template <class V> INLINE Gang<V> where_negative(const Gang<V> &x, const Gang<V> &yes, const Gang<V> &no) {
    return {where_negative(x.a, yes.a, no.a), where_negative(x.b, yes.b, no.b), where_negative(x.c, yes.c, no.c),
            where_negative(x.d, yes.d, no.d)};
}

// The formulas. X is vf or Gang<vf>.

constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number

// 2^(k + f) for whole k and f in [-1/2, 1/2]: polynomial 1 + f q(f) fitted for least relative error (9e-8)
template <class X> INLINE X exp2_near(const X &k, const X &shifted, const X &f) {
    X q = f * 0.0013264727065334314f + 0.00967151264891081f;
    q = f * q + 0.05550733743690989f;
    q = f * q + 0.2402224208517325f;
    q = f * q + 0.6931469775988572f;
    return scale(f * q + 1.0f, k, shifted);
}

template <class X> INLINE X exp2_parts(const X &k, const X &shifted, const X &fraction) {
    return exp2_near(k, shifted, tame(fraction));
}

// 2^(x y)
template <class X> INLINE X exp2_of_product_f(const X &y, const vf &x) {
#if defined(__AVX512F__)
    const X p = y * x, f = from_nearest(p);
    return exp2_near(p - f, p, f);
#else
    const X p = in_range(y * x, -126.0f);
    const X shifted = p + ROUNDER;
    const X k = shifted - ROUNDER;
    return exp2_parts(k, shifted, p - k);
#endif
}

// e^x for x <= 0
template <class X> INLINE X exp_negative(const X &any) {
    constexpr float hi = 1.44269502162933349609375f, lo = 1.92596299112661746887e-8f;  // log2(e)
    const X x = in_range(any, -87.0f);
    const X shifted = x * hi + ROUNDER;
    const X k = shifted - ROUNDER;
    return exp2_parts(k, shifted, x * lo + (x * hi - k));
}

template <class X> INLINE X sigmoid_f(const X &x) {
    const X w = exp_negative(minus_absolute(x));
    const X r = reciprocal(w + 1.0f);
    return where_negative(x, w * r, r);
}

// log(1 + e^x), and its slope sigmoid(x). log1p(w) = 2 atanh(w / (2 + w)); the polynomial is good to 5e-9.
template <class X> INLINE X softplus_f(const X &x, X &slope) {
    const X w = exp_negative(minus_absolute(x));
    const X r = reciprocal(w + 1.0f);
    slope = where_negative(x, w * r, r);
    const X s = w * (reciprocal(w * 0.5f + 1.0f) * 0.5f);
    const X q = s * s;
    X p = q * 0.14012229456819897f + 0.13999570532891958f;
    p = q * p + 0.20010849529673932f;
    p = q * p + 0.33333206566363577f;
    return positive_part(x) + 2.0f * (s + s * q * p);
}

INLINE vf sigmoid(vf x) { return sigmoid_f(x); }
INLINE Gang<vf> sigmoid(const Gang<vf> &x) { return sigmoid_f(x); }
INLINE Gang<vf> softplus(const Gang<vf> &x, Gang<vf> &slope) { return softplus_f(x, slope); }
INLINE Gang<vf> exp2_of_products(vf x, const vf *y) { return exp2_of_product_f(Gang<vf>{y[0], y[1], y[2], y[3]}, x); }

// float64 is for checking gradients: the C library's functions, a lane at a time.

INLINE vd sigmoid(vd x) {
    vd out;
    for (int i = 0; i < Lanes<double>::W; i++) out[i] = 1.0 / (1.0 + __builtin_exp(-x[i]));
    return out;
}
INLINE vd softplus_one(vd x, vd &slope) {  // linear above 20, as PyTorch has it
    vd out;
    for (int i = 0; i < Lanes<double>::W; i++) {
        out[i] = x[i] > 20.0 ? x[i] : __builtin_log1p(__builtin_exp(x[i]));
        slope[i] = x[i] > 20.0 ? 1.0 : 1.0 / (1.0 + __builtin_exp(-x[i]));
    }
    return out;
}
INLINE vd exp2_of_product(vd x, vd y) {
    vd out;
    for (int i = 0; i < Lanes<double>::W; i++) out[i] = __builtin_exp2(x[i] * y[i]);
    return out;
}
GANG_FUNCTION(sigmoid)
INLINE Gang<vd> softplus(const Gang<vd> &x, Gang<vd> &slope) {
    return {softplus_one(x.a, slope.a), softplus_one(x.b, slope.b), softplus_one(x.c, slope.c), softplus_one(x.d, slope.d)};
}
INLINE Gang<vd> exp2_of_products(vd x, const vd *y) {
    return {exp2_of_product(x, y[0]), exp2_of_product(x, y[1]), exp2_of_product(x, y[2]), exp2_of_product(x, y[3])};
}

template <class V> INLINE Gang<V> gang(const V *p) { return {p[0], p[1], p[2], p[3]}; }
template <class V> INLINE void put(V *p, const Gang<V> &x) { p[0] = x.a; p[1] = x.b; p[2] = x.c; p[3] = x.d; }
template <class V> INLINE Gang<V> broadcast(const Scalar<V> *p) { return {splat(p[0]), splat(p[1]), splat(p[2]), splat(p[3])}; }

// Four neighbouring tiles of a row, of which `left` channels are there; WHOLE: all.
template <bool WHOLE, class T> INLINE Gang<Vec<typename Acc<T>::type>> load_band(const T *p, int64_t left) {
    constexpr int W = Lanes<typename Acc<T>::type>::W;
    if constexpr (WHOLE) return {load_all(p), load_all(p + W), load_all(p + 2 * W), load_all(p + 3 * W)};
    const auto part = [&](int i) { return load(p + i * W, int(left < i * W ? 0 : left > (i + 1) * W ? W : left - i * W)); };
    return {part(0), part(1), part(2), part(3)};
}
template <bool WHOLE, class T> INLINE void store_band(T *p, const Gang<Vec<typename Acc<T>::type>> &x, int64_t left) {
    constexpr int W = Lanes<typename Acc<T>::type>::W;
    const auto part = [&](int i, Vec<typename Acc<T>::type> v) {
        if (WHOLE) store_all(p + i * W, v);
        else store(p + i * W, v, int(left < i * W ? 0 : left > (i + 1) * W ? W : left - i * W));
    };
    part(0, x.a);
    part(1, x.b);
    part(2, x.c);
    part(3, x.d);
}

// ---- across lanes ----

template <class V> struct IndexOf;
template <> struct IndexOf<vf> { typedef Lanes<float>::I type; };
template <> struct IndexOf<vd> { typedef Lanes<double>::I type; };

// Lane sums of two vectors at once. Lanes come in units that belong together; of x and of y, neighbouring units (of a
// 16-byte block while it has several, else blocks) are added, which leaves half as many of each: x's and y's side by side.
template <class S, int unit> INLINE Vec<S> pair_sums(Vec<S> x, Vec<S> y) {
    constexpr int W = Lanes<S>::W, block = 16 / int(sizeof(S));
    typename IndexOf<Vec<S>>::type one = {}, other = {};
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
        if (unit < block) {  // x y x y …, from the first and from the second half of every block
            one[i] = i / block * block + i % block / (2 * unit) * unit + i % unit + (i / unit % 2 ? W : 0);
            other[i] = one[i] + block / 2;
        } else {  // x x … y y …, from even and from odd blocks
            one[i] = i / block * 2 * block + i % block;
            other[i] = one[i] + block;
        }
    }
    return __builtin_shuffle(x, y, one) + __builtin_shuffle(x, y, other);
}

// Sums over lanes of COUNT vectors (a power of two), as a tree that begins with units of `unit` lanes: the first
// COUNT / (W / unit), at least one, become sums; lane i % W of vector i / W that of v[i]. With fewer vectors than lanes
// several lanes, to be added, have parts of each sum; a tree over such vectors with `unit` = COUNT goes on from there.
template <class S, int COUNT, int unit = 1> INLINE void fold(Vec<S> *v) {
    if constexpr (COUNT > 1 && unit < Lanes<S>::W) {
#pragma GCC unroll 16
        for (int i = 0; i < COUNT / 2; i++) v[i] = pair_sums<S, unit>(v[2 * i], v[2 * i + 1]);
        fold<S, COUNT / 2, 2 * unit>(v);
    }
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
