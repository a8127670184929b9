// Random inputs of programs that run kernels on the host.
#pragma once

#include <memory>
#include <random>
#include <type_traits>

#include "ptx.cuh"

namespace dmao {

inline std::mt19937 random_bits(1);

// `count` numbers in [-1, 1], in an allocation of exactly their size: what is read beside it is
// seen by AddressSanitizer.
template <class E>
std::unique_ptr<E[]> random_values(int count) {
    std::unique_ptr<E[]> made(new E[count]);
    for (int i = 0; i < count; ++i) {
        const float value = static_cast<float>(random_bits() % 2001) / 1000.0f - 1.0f;
        if constexpr (std::is_same_v<E, float>) {
            made[i] = value;
        } else {
            made[i].bits = ptx::round_half(E{}, value);
        }
    }
    return made;
}

}  // namespace dmao
