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

#include "dmao/philox_numbers.h"

namespace dmao {

inline constexpr int kPhiloxLanes = 16;
inline constexpr int kPhiloxUnits = 8 * kPhiloxLanes;  // on which a call decides

// Everything here has internal linkage: the header is compiled once per instruction set, and the
// linker must not merge those copies.
namespace {

// One word of the 128-bit counter for as many lanes as a register holds, each in the low half of 64
// bits; the high half is don't-care, which is what a 32 x 32 -> 64 bit multiplication reads and
// writes. That multiplication is spelled out because compilers, seeing a 64-bit one, choose slower
// instructions (vpmullq, or shifts and additions).
//
// low_words and high_words join the 32-bit halves of two such vectors, by two lanes of the one and
// two of the other in turns.
#if defined(__AVX512F__)
using PhiloxVec = uint64_t __attribute__((vector_size(64)));
using PhiloxWords = uint32_t __attribute__((vector_size(64)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxVec>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
inline PhiloxWords low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxWords>(
        _mm512_shuffle_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), 0x88));
}
inline PhiloxWords high_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxWords>(
        _mm512_shuffle_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), 0xDD));
}
#elif defined(__AVX2__)
using PhiloxVec = uint64_t __attribute__((vector_size(32)));
using PhiloxWords = uint32_t __attribute__((vector_size(32)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxVec>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
inline PhiloxWords low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxWords>(
        _mm256_shuffle_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), 0x88));
}
inline PhiloxWords high_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxWords>(
        _mm256_shuffle_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), 0xDD));
}
#elif defined(__SSE2__)
using PhiloxVec = uint64_t __attribute__((vector_size(16)));
using PhiloxWords = uint32_t __attribute__((vector_size(16)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxVec>(
        _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
inline PhiloxWords low_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxWords>(
        _mm_shuffle_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b), 0x88));
}
inline PhiloxWords high_words(PhiloxVec a, PhiloxVec b) {
    return reinterpret_cast<PhiloxWords>(
        _mm_shuffle_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b), 0xDD));
}
#else
using PhiloxVec = uint64_t __attribute__((vector_size(16)));
using PhiloxWords = uint32_t __attribute__((vector_size(16)));
inline PhiloxVec multiply_low_words(PhiloxVec a, PhiloxVec b) {
    return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF);
}
inline PhiloxWords low_words(PhiloxVec a, PhiloxVec b) {
    return PhiloxWords{static_cast<uint32_t>(a[0]), static_cast<uint32_t>(a[1]),
                       static_cast<uint32_t>(b[0]), static_cast<uint32_t>(b[1])};
}
inline PhiloxWords high_words(PhiloxVec a, PhiloxVec b) { return low_words(a >> 32, b >> 32); }
#endif

inline constexpr int kPhiloxWidth = sizeof(PhiloxWords) / sizeof(uint32_t);
inline constexpr int kPhiloxVecs = 2 * kPhiloxLanes / kPhiloxWidth;  // for one word of all lanes

inline uint32_t high_half(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

// The two words of the key in a round: (low, high half of the seed) plus round times these.
inline uint32_t philox_key0(uint64_t seed, int round) {
    return static_cast<uint32_t>(seed) + round * kPhiloxStep0;
}
inline uint32_t philox_key1(uint64_t seed, int round) {
    return high_half(seed) + round * kPhiloxStep1;
}

// What of the 16 counters (first + lane, row, s0, s1) does not depend on the row, computed once for
// all rows: a third of the work. For the row starts in c1 and the lane in c0, and they first meet
// in an xor. Entering round 1, c0 depends on the row only, c2 and c3 on the lane only; entering
// round 2, c2 is `c2` here xor the high half of multiplier0 * (c0 of round 1), c3 is the low half
// of that product; entering round 3, c0 is next_c0 xor the high half of multiplier1 * (c2 of round
// 2), c1 is the low half of that product, c2 is next_c2 xor c3 of round 2, and c3 is next_c3.
struct PhiloxGroup {
    PhiloxVec c2[kPhiloxVecs];
    PhiloxVec next_c0[kPhiloxVecs], next_c2[kPhiloxVecs], next_c3[kPhiloxVecs];

    PhiloxGroup(uint64_t seed, uint32_t first, uint32_t s0, uint32_t s1) {
        const PhiloxVec multiplier0 = PhiloxVec{} + kPhiloxMultiplier0;
        const PhiloxVec multiplier1 = PhiloxVec{} + kPhiloxMultiplier1;
        const uint32_t c1 = kPhiloxMultiplier1 * s0;  // entering round 1
        for (int vec = 0; vec < kPhiloxVecs; ++vec) {
            PhiloxVec counter;  // low_words of two neighbouring vectors puts them in order
            for (int i = 0; i < kPhiloxWidth / 2; ++i) {
                counter[i] = first + vec / 2 * kPhiloxWidth + i / 2 * 4 + vec % 2 * 2 + i % 2;
            }
            const PhiloxVec product0 = multiply_low_words(counter, multiplier0);
            const PhiloxVec product1 =
                multiply_low_words((product0 >> 32) ^ s1 ^ philox_key1(seed, 0), multiplier1);
            const PhiloxVec product2 =
                multiply_low_words((product1 >> 32) ^ c1 ^ philox_key0(seed, 1), multiplier0);
            c2[vec] = product0 ^ philox_key1(seed, 1);
            next_c0[vec] = product1 ^ philox_key0(seed, 2);
            next_c2[vec] = (product2 >> 32) ^ philox_key1(seed, 2);
            next_c3[vec] = product2;
        }
    }
};

// Dropout with probability p in [0, 1): the factor of each element is 0 or scale / (1 - p).
//
// Cost with AVX2: 190 vector instructions per 128 elements, 15 ns at four a cycle and 3.2 GHz; what
// is measured (Zen 3) is 19 ns. A copy of 128 floats from and to memory takes 60.
class Dropout {
  public:
    Dropout(double p, uint64_t seed, double scale = 1.0)
        : threshold_(static_cast<uint32_t>(std::nearbyint(p * 65536.0))), seed_(seed) {
        for (int i = 0; i < kRounds; ++i) {
            key0_[i] = PhiloxVec{} + philox_key0(seed, kFirstRound + i);
            key1_[i] = PhiloxVec{} + philox_key1(seed, kFirstRound + i);
        }
        last_key0_ = PhiloxWords{} + (philox_key0(seed, kPhiloxRounds - 1) ^ kSigns);
        last_key1_ = PhiloxWords{} + (philox_key1(seed, kPhiloxRounds - 1) ^ kSigns);
        below_ = PhiloxWords{} + (((threshold_ << 16) - 1) ^ 0x80000000);
        const float kept = static_cast<float>(scale / (1.0 - p));
        uint32_t bits;
        std::memcpy(&bits, &kept, sizeof(bits));
        kept_ = PhiloxWords{} + bits;
    }

    // Whether it drops anything. The following is for those that do.
    bool active() const { return threshold_ != 0; }

    // Elements 128 * index to 128 * index + 127 of all rows of a stream.
    PhiloxGroup group(uint32_t index, uint32_t s0 = 0, uint32_t s1 = 0) const {
        return PhiloxGroup(seed_, index * kPhiloxLanes, s0, s1);
    }

    // out[128 * g + i] = the factor of element i of groups[g] in this row; s0 as in the groups.
    void factors(const PhiloxGroup* groups, int64_t count, uint32_t row, float* out,
                 uint32_t s0 = 0) const {
        const uint32_t c0 =
            high_half(uint64_t{kPhiloxMultiplier1} * s0) ^ row ^ philox_key0(seed_, 0);
        const PhiloxVec row_low = PhiloxVec{} + uint64_t{kPhiloxMultiplier0} * c0;
        const PhiloxVec row_high = row_low >> 32;
        for (int64_t g = 0; g < count; ++g, out += kPhiloxUnits) {
            for (int vec = 0; vec < kPhiloxVecs; vec += 2) {
                decide(groups[g], vec, row_low, row_high, out + vec * kPhiloxWidth / 2);
            }
        }
    }

    // The same of one group, for those who ask for few of its rows.
    void factors(uint32_t row, uint32_t index, float* out, uint32_t s0 = 0, uint32_t s1 = 0) const {
        const PhiloxGroup only = group(index, s0, s1);
        factors(&only, 1, row, out, s0);
    }

  private:
    static constexpr int kFirstRound = 3, kRounds = kPhiloxRounds - 1 - kFirstRound;
    // Turns unsigned order into that of signed integers, which vectors compare: of words and of
    // their low halves.
    static constexpr uint32_t kSigns = 0x80008000;

    // The factors on which the vectors vec and vec + 1 of a group decide.
    void decide(const PhiloxGroup& group, int vec, PhiloxVec row_low, PhiloxVec row_high,
                float* out) const {
        const PhiloxVec multiplier0 = PhiloxVec{} + kPhiloxMultiplier0;
        const PhiloxVec multiplier1 = PhiloxVec{} + kPhiloxMultiplier1;
        PhiloxVec c0[2], c1[2], c2[2], c3[2], product0[2], product1[2];
        for (int i = 0; i < 2; ++i) {
            c1[i] = multiply_low_words(group.c2[vec + i] ^ row_high, multiplier1);
            c0[i] = (c1[i] >> 32) ^ group.next_c0[vec + i];
            c2[i] = group.next_c2[vec + i] ^ row_low;
            c3[i] = group.next_c3[vec + i];
        }
        for (int round = 0; round < kRounds; ++round) {
            for (int i = 0; i < 2; ++i) {
                product0[i] = multiply_low_words(c0[i], multiplier0);
                product1[i] = multiply_low_words(c2[i], multiplier1);
                c0[i] = (product1[i] >> 32) ^ c1[i] ^ key0_[round];
                c2[i] = (product0[i] >> 32) ^ c3[i] ^ key1_[round];
                c1[i] = product1[i];
                c3[i] = product0[i];
            }
        }
        for (int i = 0; i < 2; ++i) {
            product0[i] = multiply_low_words(c0[i], multiplier0);
            product1[i] = multiply_low_words(c2[i], multiplier1);
        }
        compare(high_words(product1[0], product1[1]) ^ low_words(c1[0], c1[1]) ^ last_key0_, out);
        compare(low_words(product1[0], product1[1]) ^ kSigns, out + kPhiloxLanes);
        compare(high_words(product0[0], product0[1]) ^ low_words(c3[0], c3[1]) ^ last_key1_,
                out + 2 * kPhiloxLanes);
        compare(low_words(product0[0], product0[1]) ^ kSigns, out + 3 * kPhiloxLanes);
    }

    // Both halves of some words (xor kSigns), each as the high half of a word: they reach the
    // threshold iff this exceeds (threshold << 16) - 1.
    void compare(PhiloxWords words, float* out) const {
        using Integers = int32_t __attribute__((vector_size(sizeof(PhiloxWords))));
        const Integers below = reinterpret_cast<Integers>(below_);
        const Integers kept = reinterpret_cast<Integers>(kept_);
        const Integers low = (reinterpret_cast<Integers>(words << 16) > below) & kept;
        const Integers high = (reinterpret_cast<Integers>(words) > below) & kept;
        std::memcpy(out, &low, sizeof(low));
        std::memcpy(out + kPhiloxUnits / 2, &high, sizeof(high));
    }

    uint32_t threshold_;  // an element is kept iff its 16 bits reach this
    uint64_t seed_;
    PhiloxVec key0_[kRounds], key1_[kRounds];  // of rounds 3 to 5
    PhiloxWords last_key0_, last_key1_;        // of round 6, xor kSigns
    PhiloxWords below_, kept_;
};

}  // namespace
}  // namespace dmao
