// Vec: as many floats as one register of the instruction set holds, so that one kernel source
// serves all of them.
//
// Everything here lives in DMAO_ISA_NAMESPACE (include/dmao/isa.h says why), so this header belongs
// into csrc/cpu only. Conventions: `count` is in [0, Vec::width]; a partial load fills the rest
// with zero and touches no memory beyond count, a partial store writes count elements. max and min
// return their SECOND argument when either is NaN. fma(a, b, c) = a * b + c, in one rounding except
// in the portable build, where a library call would do it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "dmao/types.h"

namespace dmao::DMAO_ISA_NAMESPACE {

// --- scalars

inline float to_float(float x) { return x; }

inline float to_float(bfloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}

// Round to nearest, ties to even; NaN stays NaN.
inline bfloat16 to_bfloat16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    if (x != x) return {0x7fc0};
    bits += 0x7fff + ((bits >> 16) & 1);
    return {static_cast<std::uint16_t>(bits >> 16)};
}

inline void set(float& target, float value) { target = value; }
inline void set(bfloat16& target, float value) { target = to_bfloat16(value); }

#if defined(__AVX512F__)

// --- AVX-512

struct Vec {
    static constexpr int width = 16;
    __m512 v;
    Vec(__m512 value) : v(value) {}
    explicit Vec(float x) : v(_mm512_set1_ps(x)) {}
};

inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

// x in the first count lanes, zero in the others.
inline Vec first(Vec x, int count) { return _mm512_maskz_mov_ps(first_lanes(count), x.v); }

inline __m512 widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m256i narrow(__m512 x) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const float* p, int count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }
inline Vec load(const bfloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const bfloat16* p, int count) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, Vec x, int count) { _mm512_mask_storeu_ps(p, first_lanes(count), x.v); }
inline void store(bfloat16* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x.v));
}
inline void store(bfloat16* p, Vec x, int count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(x.v));
}

inline Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline Vec fma_in_place(Vec a, Vec b, Vec c) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(c.v) : "v"(a.v), "v"(b.v));
    return c;
}
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
inline Vec abs(Vec x) { return _mm512_abs_ps(x.v); }
inline Vec sqrt(Vec x) { return _mm512_sqrt_ps(x.v); }
inline Vec round(Vec x) {
    return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n for integral n.
inline Vec scale(Vec x, Vec n) { return _mm512_scalef_ps(x.v, n.v); }
// The same where x and the result are normal numbers.
inline Vec scale_normal(Vec x, Vec n) { return scale(x, n); }
inline float sum(Vec x) { return _mm512_reduce_add_ps(x.v); }
inline float largest(Vec x) { return _mm512_reduce_max_ps(x.v); }

#if defined(__AVX512BF16__)

// Pairs of bfloat16: a Vec whose lanes hold the 32 bits of two neighbours each, the first in the
// low half. count is in [0, 2 * width]. The arithmetic takes subnormal bfloat16 for zero.
inline Vec load_pairs(const bfloat16* p, int count) {
    const __mmask32 first = static_cast<__mmask32>((std::uint64_t{1} << count) - 1);
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first, p));
}
inline Vec broadcast_pair(const bfloat16* p) {
    std::int32_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
}
// Lane i: the pair of low[i] and high[i], rounded.
inline Vec make_pairs(Vec low, Vec high) {
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v));
    const __m512i order = _mm512_or_si512(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_setr_epi32(16 << 16, 17 << 16, 18 << 16, 19 << 16, 20 << 16, 21 << 16, 22 << 16,
                          23 << 16, 24 << 16, 25 << 16, 26 << 16, 27 << 16, 28 << 16, 29 << 16,
                          30 << 16, 31 << 16));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves));
}
// c[i] + the product of the pairs a[i] and b[i].
inline Vec dot(Vec a, Vec b, Vec c) {
    return _mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v));
}

#endif

#elif defined(__AVX2__)

// --- AVX2

struct Vec {
    static constexpr int width = 8;
    __m256 v;
    Vec(__m256 value) : v(value) {}
    explicit Vec(float x) : v(_mm256_set1_ps(x)) {}
};

inline __m256i first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// x in the first count lanes, zero in the others.
inline Vec first(Vec x, int count) {
    return _mm256_and_ps(x.v, _mm256_castsi256_ps(first_lanes(count)));
}

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const float* p, int count) { return _mm256_maskload_ps(p, first_lanes(count)); }
inline Vec load(const bfloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(const bfloat16* p, int count) {
    bfloat16 lanes[8] = {};
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    return load(lanes);
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
inline void store(float* p, Vec x, int count) { _mm256_maskstore_ps(p, first_lanes(count), x.v); }
inline void store(bfloat16* p, Vec x) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline void store(bfloat16* p, Vec x, int count) {
    bfloat16 lanes[8];
    store(lanes, x);
    for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

inline Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline Vec fma_in_place(Vec a, Vec b, Vec c) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(c.v) : "x"(a.v), "x"(b.v));
    return c;
}
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
inline Vec abs(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v); }
inline Vec sqrt(Vec x) { return _mm256_sqrt_ps(x.v); }
inline Vec round(Vec x) {
    return _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// x * 2^n for integral n in [-252, 254]. In two steps: 2^n alone may be out of range where x * 2^n
// is not.
inline Vec scale(Vec x, Vec n) {
    const __m256i whole = _mm256_cvtps_epi32(n.v);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x.v, power_of_two(half)),
                         power_of_two(_mm256_sub_epi32(whole, half)));
}
// The same where x and the result are normal numbers.
inline Vec scale_normal(Vec x, Vec n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), exponent));
}
inline float sum(Vec x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vec x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#else

// --- portable: the compiler's generic vectors, four lanes, which every 64-bit CPU has

struct Vec {
    static constexpr int width = 4;
    using Register = float __attribute__((vector_size(16)));
    using Integers = std::int32_t __attribute__((vector_size(16)));
    Register v;
    Vec(Register value) : v(value) {}
    explicit Vec(float x) : v(Register{x, x, x, x}) {}
};

// x in the first count lanes, zero in the others.
inline Vec first(Vec x, int count) {
    for (int i = count; i < Vec::width; ++i) x.v[i] = 0.0f;
    return x;
}

inline Vec load(const float* p) {
    Vec::Register v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}
inline Vec load(const float* p, int count) {
    float lanes[4] = {};
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    return load(lanes);
}
inline Vec load(const bfloat16* p) {
    return Vec::Register{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
inline Vec load(const bfloat16* p, int count) {
    bfloat16 lanes[4] = {};
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    return load(lanes);
}
inline void store(float* p, Vec x) { std::memcpy(p, &x.v, sizeof(x.v)); }
inline void store(float* p, Vec x, int count) {
    for (int i = 0; i < count; ++i) p[i] = x.v[i];
}
inline void store(bfloat16* p, Vec x, int count) {
    for (int i = 0; i < count; ++i) p[i] = to_bfloat16(x.v[i]);
}
inline void store(bfloat16* p, Vec x) { store(p, x, Vec::width); }

inline Vec operator+(Vec a, Vec b) { return a.v + b.v; }
inline Vec operator-(Vec a, Vec b) { return a.v - b.v; }
inline Vec operator*(Vec a, Vec b) { return a.v * b.v; }
inline Vec operator/(Vec a, Vec b) { return a.v / b.v; }
inline Vec fma(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
inline Vec fma_in_place(Vec a, Vec b, Vec c) { return fma(a, b, c); }
inline Vec max(Vec a, Vec b) { return a.v > b.v ? a.v : b.v; }
inline Vec min(Vec a, Vec b) { return a.v < b.v ? a.v : b.v; }
inline Vec abs(Vec x) {
    Vec::Integers bits;
    std::memcpy(&bits, &x.v, sizeof(bits));
    bits &= 0x7fffffff;
    std::memcpy(&x.v, &bits, sizeof(bits));
    return x;
}
inline Vec sqrt(Vec x) {
    for (int i = 0; i < Vec::width; ++i) x.v[i] = __builtin_sqrtf(x.v[i]);
    return x;
}
inline Vec round(Vec x) {
    for (int i = 0; i < Vec::width; ++i) x.v[i] = __builtin_rintf(x.v[i]);
    return x;
}
inline Vec power_of_two(Vec::Integers n) {
    const Vec::Integers bits = (n + 127) << 23;
    Vec result(0.0f);
    std::memcpy(&result.v, &bits, sizeof(bits));
    return result;
}
// x * 2^n for integral n in [-252, 254]. In two steps: 2^n alone may be out of range where x * 2^n
// is not.
inline Vec scale(Vec x, Vec n) {
    Vec::Integers whole;
    for (int i = 0; i < Vec::width; ++i) {
        const bool valid =
            n.v[i] > -1000.0f && n.v[i] < 1000.0f;  // false for NaN: no integer has its value
        whole[i] = valid ? static_cast<std::int32_t>(n.v[i]) : 0;
    }
    const Vec::Integers half = whole >> 1;
    return x * power_of_two(half) * power_of_two(whole - half);
}
// The same where x and the result are normal numbers.
inline Vec scale_normal(Vec x, Vec n) { return scale(x, n); }
inline float sum(Vec x) { return (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]); }
inline float largest(Vec x) {
    const float a = x.v[0] > x.v[1] ? x.v[0] : x.v[1], b = x.v[2] > x.v[3] ? x.v[2] : x.v[3];
    return a > b ? a : b;
}

#endif

// --- for all

// Asks for the cache line at p, which may lie anywhere.
inline void prefetch(const void* p) { __builtin_prefetch(p); }
// The same, into the second-level cache.
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

// e^x to about 1 unit in the last place; 0 and infinity where the result is out of range, NaN for
// NaN. x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r (Cephes' coefficients), times 2^n.
inline Vec exp(Vec x) {
    x = max(Vec(-104.0f), min(Vec(89.0f), x));
    const Vec n = round(x * Vec(1.44269504f));
    const Vec r = fma(n, Vec(2.12194440e-4f), fma(n, Vec(-0.693359375f), x));
    Vec p(1.9875691500e-4f);
    p = fma(p, r, Vec(1.3981999507e-3f));
    p = fma(p, r, Vec(8.3334519073e-3f));
    p = fma(p, r, Vec(4.1665795894e-2f));
    p = fma(p, r, Vec(1.6666665459e-1f));
    p = fma(p, r, Vec(5.0000001201e-1f));
    p = fma(p * r, r, r + Vec(1.0f));
    return scale(p, n);
}

// 2^x to about 1 unit in the last place for x < 128; 0 where the result is not a normal number, NaN
// for NaN. Two thirds of the work of exp: nothing is lost in the reduction of x.
inline Vec exp2(Vec x) {
    const Vec n = round(x);
    const Vec r = x - n;
    Vec p(1.535336188319500e-4f);
    p = fma(p, r, Vec(1.339887440266574e-3f));
    p = fma(p, r, Vec(9.618437357674640e-3f));
    p = fma(p, r, Vec(5.550332471162809e-2f));
    p = fma(p, r, Vec(2.402264791363012e-1f));
    p = fma(p, r, Vec(6.931472028550421e-1f));
    p = scale_normal(fma(p, r, Vec(1.0f)), n);
    const decltype(Vec::v) zero = Vec(0.0f).v, least = Vec(-126.0f).v;
    return Vec(x.v < least ? zero : p.v);
}

// A vector, or as much of one as count leaves.
template <class T>
Vec load_some(const T* p, std::int64_t count) {
    return count >= Vec::width ? load(p) : load(p, static_cast<int>(count));
}
template <class T>
void store_some(T* p, Vec x, std::int64_t count) {
    count >= Vec::width ? store(p, x) : store(p, x, static_cast<int>(count));
}

// 1 / (1 + e^-x)
inline Vec sigmoid(Vec x) { return Vec(1.0f) / (Vec(1.0f) + exp(Vec(0.0f) - x)); }

}  // namespace dmao::DMAO_ISA_NAMESPACE
