// The dropout mask of dmao/philox.h on a GPU, bit for bit: which 16 bits of which call decide on an
// element is told there.
//
// Floor: a call is 7 rounds of 2 wide multiplications and 4 xors, 75 instructions with the keys,
// and decides on 8 elements, those 16 columns apart within 128. `keep` throws seven of them away.
#pragma once

#include "dmao/philox_numbers.h"
#include "ptx.cuh"

namespace dmao {

// What 16 bits must reach for their element to be kept. For the host.
inline unsigned dropout_threshold(double p) {
    return static_cast<unsigned>(std::nearbyint(p * 65536.0));
}

class Philox {
  public:
    // seed: of one int64, as PyTorch's generators draw it.
    __device__ __forceinline__ explicit Philox(const std::int64_t* seed) : Philox(*seed) {}
    __device__ __forceinline__ explicit Philox(std::int64_t seed)
        : key0_(static_cast<unsigned>(static_cast<std::uint64_t>(seed))),
          key1_(static_cast<unsigned>(static_cast<std::uint64_t>(seed) >> 32)) {}

    // The four output words of a counter.
    __device__ __forceinline__ void draw(unsigned c0, unsigned c1, unsigned c2, unsigned c3,
                                         unsigned (&words)[4]) const {
        unsigned key0 = key0_, key1 = key1_;
#pragma unroll
        for (int round = 0; round < kPhiloxRounds; ++round) {
            const std::uint64_t product0 = static_cast<std::uint64_t>(kPhiloxMultiplier0) * c0;
            const std::uint64_t product1 = static_cast<std::uint64_t>(kPhiloxMultiplier1) * c2;
            c0 = static_cast<unsigned>(product1 >> 32) ^ c1 ^ key0;
            c2 = static_cast<unsigned>(product0 >> 32) ^ c3 ^ key1;
            c1 = static_cast<unsigned>(product1);
            c3 = static_cast<unsigned>(product0);
            key0 += kPhiloxStep0;
            key1 += kPhiloxStep1;
        }
        words[0] = c0;
        words[1] = c1;
        words[2] = c2;
        words[3] = c3;
    }

    // Whether dropout keeps an element of a row in stream (s0, s1).
    __device__ __forceinline__ bool keep(unsigned row, unsigned column, unsigned threshold,
                                         unsigned s0 = 0, unsigned s1 = 0) const {
        unsigned words[4];
        draw(column / 128 * 16 + column % 16, row, s0, s1, words);
        const unsigned part = column / 16 % 8;
        const unsigned even = part % 4 < 2 ? words[0] : words[2];
        const unsigned odd = part % 4 < 2 ? words[1] : words[3];
        return ((part % 2 == 0 ? even : odd) >> part / 4 * 16 & 0xFFFF) >= threshold;
    }

    // The same of eight elements: bit i is that of column first / 16 * 128 + i * 16 + first % 16.
    __device__ __forceinline__ unsigned keep_bits(unsigned row, unsigned first, unsigned threshold,
                                                  unsigned s0 = 0, unsigned s1 = 0) const {
        unsigned words[4], bits = 0;
        draw(first, row, s0, s1, words);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            bits |= static_cast<unsigned>((words[i] & 0xFFFF) >= threshold) << i;
            bits |= static_cast<unsigned>(words[i] >> 16 >= threshold) << (i + 4);
        }
        return bits;
    }

  private:
    unsigned key0_, key1_;
};

}  // namespace dmao
