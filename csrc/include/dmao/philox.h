// Philox4x32-10, the counter-based generator behind dropout: every random word is a pure function
// of (seed, counter), so a mask is recomputed in the backward pass and never stored, and it does
// not depend on the number of threads, the tile sizes or the instruction set.
//
// J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2,
// 3", SC 2011, section 4.3 and table 2.
//
// Which word belongs to which element (the contract with dmao_kernels/ops/_philox.py):
//   hidden unit j of token row r  ->  counter ((j / 64) * 16 + j % 16, r, 0, 0), word (j / 16) % 4,
//   key (low, high half of the seed);  the element is kept iff word >= round(p * 2^32).
// Thus one call for 16 neighbouring counters yields the words of 64 neighbouring units, in order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace dmao {

inline constexpr int kPhiloxLanes = 16;
inline constexpr int kPhiloxUnits = 4 * kPhiloxLanes;

// Everything here has internal linkage: the header is compiled once per instruction set, and the
// linker must not merge those copies.
namespace {

// One word of the 128-bit counter for as many lanes as a register holds, each in the low half of 64
// bits; the high half is don't-care, which is what a 32 x 32 -> 64 bit multiplication reads and
// writes. That multiplication is spelled out because compilers, seeing a 64-bit one, choose slower
// instructions (vpmullq, or shifts and additions).
#if defined(__AVX512F__)
using PhiloxVec = uint64_t __attribute__((vector_size(64)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxVec>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
#elif defined(__AVX2__)
using PhiloxVec = uint64_t __attribute__((vector_size(32)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxVec>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
#elif defined(__SSE2__)
using PhiloxVec = uint64_t __attribute__((vector_size(16)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxVec>(
        _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
#else
using PhiloxVec = uint64_t __attribute__((vector_size(16)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF);
}
#endif

// words[w * 16 + lane] = output word w for the counter (first + lane, row, 0, 0).
inline void philox_words(uint64_t seed, uint32_t first, uint32_t row,
                         uint32_t (&words)[kPhiloxUnits]) {
    const PhiloxVec multiplier0 = PhiloxVec{} + 0xD2511F53, multiplier1 = PhiloxVec{} + 0xCD9E8D57;
    constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
    static constexpr uint64_t kLane[kPhiloxLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                     8, 9, 10, 11, 12, 13, 14, 15};
    constexpr int kWidth = sizeof(PhiloxVec) / sizeof(uint64_t), kParts = kPhiloxLanes / kWidth;
    PhiloxVec c0[kParts], c1[kParts], c2[kParts], c3[kParts];
    for (int part = 0; part < kParts; ++part) {
        std::memcpy(&c0[part], kLane + part * kWidth, sizeof(PhiloxVec));
        c0[part] += first;
        c1[part] = PhiloxVec{} + row;
        c2[part] = c3[part] = PhiloxVec{};
    }
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int part = 0; part < kParts; ++part) {
            const PhiloxVec product0 = multiply_low_words(c0[part], multiplier0);
            const PhiloxVec product1 = multiply_low_words(c2[part], multiplier1);
            c0[part] = (product1 >> 32) ^ c1[part] ^ key0;
            c2[part] = (product0 >> 32) ^ c3[part] ^ key1;
            c1[part] = product1;
            c3[part] = product0;
        }
        key0 += kWeyl0;
        key1 += kWeyl1;
    }
    const PhiloxVec* output[4] = {c0, c1, c2, c3};
    for (int w = 0; w < 4; ++w)
        for (int i = 0; i < kPhiloxLanes; ++i)
            words[w * kPhiloxLanes + i] = static_cast<uint32_t>(output[w][i / kWidth][i % kWidth]);
}

// Dropout with probability p in [0, 1): the factor of each element is 0 or 1 / (1 - p).
struct Dropout {
    uint64_t seed;
    uint32_t threshold;  // an element is kept iff its word reaches this
    float scale;

    Dropout(double p, uint64_t seed)
        : seed(seed),
          // p just below 1 rounds to 2^32, which has no 32-bit value; nearly all words drop anyway.
          threshold(static_cast<uint32_t>(std::fmin(std::nearbyint(p * 4294967296.0), kLargest))),
          scale(static_cast<float>(1.0 / (1.0 - p))) {}

    bool active() const { return threshold != 0; }

    // out[i] = the factor of unit 64 * group + i, i < 64.
    void factors(uint32_t row, uint32_t group, float* out) const {
        const uint32_t least = threshold;  // copies, because `out` might alias the members
        const float kept = scale;
        uint32_t words[kPhiloxUnits];
        philox_words(seed, group * kPhiloxLanes, row, words);
        for (int i = 0; i < kPhiloxUnits; ++i) out[i] = words[i] >= least ? kept : 0.0f;
    }

  private:
    static constexpr double kLargest = 4294967295.0;
};

}  // namespace
}  // namespace dmao
