// philox: the dropout mask of csrc/cuda/philox.cuh beside the CPU's; prints "right" or "wrong:
// ...".
#include "philox.cuh"

#include <cstdio>

#include "dmao/philox.h"

int main() {
    constexpr double p = 0.3;
    constexpr std::int64_t seeds[] = {0, 0x123456789ABCDEF, -1};
    constexpr unsigned rows[] = {0, 1, 77, 4000000000};
    const unsigned threshold = dmao::dropout_threshold(p);
    for (const std::int64_t seed : seeds) {
        const dmao::Philox philox(&seed);
        const dmao::Dropout dropout(p, static_cast<std::uint64_t>(seed));
        for (unsigned at = 0; at < 2 * 4 * 3; ++at) {
            const unsigned stream = at / 12, row = rows[at / 3 % 4], group = at % 3;
            const unsigned s0 = 5 * stream, s1 = 9 * stream;
            float factors[dmao::kPhiloxUnits];
            dropout.factors(row, group, factors, s0, s1);
            for (unsigned i = 0; i < dmao::kPhiloxUnits; ++i) {
                const bool kept = factors[i] != 0.0f;
                const unsigned bits = philox.keep_bits(row, group * 16 + i % 16, threshold, s0, s1);
                if (philox.keep(row, group * 128 + i, threshold, s0, s1) == kept &&
                    (bits >> (i / 16) & 1) == kept) {
                    continue;
                }
                std::printf("wrong: row %u, element %u of group %u\n", row, i, group);
                return 1;
            }
        }
    }
    std::puts("right");
}
