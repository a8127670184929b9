// Philox4x32-7, the counter-based generator behind dropout: every random word is a pure function
// of (seed, counter), so a mask is recomputed in the backward pass and never stored, and it does
// not depend on the number of threads, the tile sizes or the instruction set.
//
// J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2,
// 3", SC 2011, section 4.3 and table 2: seven rounds pass all of TestU01's BigCrush.
//
// Which bits belong to which element (the contract with dmao_kernels/ops/_philox.py): element j of
// row r in stream (s0, s1) has the key (low, high half of the seed), the counter
// ((j / 128) * 16 + j % 16, r, s0, s1) and, with i = (j / 16) % 8, the half i / 4 (0: low, 1: high)
// of output word i % 4; it is kept iff these 16 bits are at least round(p * 2^16).
// Thus one call for 16 neighbouring counters decides on 128 neighbouring elements, in order.
//
// What is a row and a stream is up to the operation: rows are tokens and the stream is (0, 0),
// except in attention, where rows are queries, elements keys, and each (utterance, head) a stream.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace dmao {

inline constexpr int kPhiloxLanes = 16;
inline constexpr int kPhiloxRounds = 7;
inline constexpr int kPhiloxWords = 4 * kPhiloxLanes;  // that a call yields
inline constexpr int kPhiloxUnits = 2 * kPhiloxWords;  // on which it decides

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

// words[w * 16 + lane] = output word w for the counter (first + lane, row, s0, s1).
inline void philox_words(uint64_t seed, uint32_t first, uint32_t row, uint32_t s0, uint32_t s1,
                         uint32_t (&words)[kPhiloxWords]) {
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
        c2[part] = PhiloxVec{} + s0;
        c3[part] = PhiloxVec{} + s1;
    }
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
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
    uint32_t threshold;  // an element is kept iff its 16 bits reach this
    float scale;

    Dropout(double p, uint64_t seed)
        : seed(seed),
          threshold(static_cast<uint32_t>(std::nearbyint(p * 65536.0))),
          scale(static_cast<float>(1.0 / (1.0 - p))) {}

    bool active() const { return threshold != 0; }

    // out[i] = the factor of element 128 * group + i of the row, i < 128.
    void factors(uint32_t row, uint32_t group, float* out, uint32_t s0 = 0, uint32_t s1 = 0) const {
        const uint32_t least = threshold;  // copies, because `out` might alias the members
        const float kept = scale;
        uint32_t words[kPhiloxWords];
        philox_words(seed, group * kPhiloxLanes, row, s0, s1, words);
        for (int i = 0; i < kPhiloxWords; ++i) {
            out[i] = (words[i] & 0xFFFF) >= least ? kept : 0.0f;
            out[kPhiloxWords + i] = (words[i] >> 16) >= least ? kept : 0.0f;
        }
    }
};

}  // namespace
}  // namespace dmao
