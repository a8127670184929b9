// Eight neighbouring elements of a matrix as float32, where no time is lost if two cases meet.
#pragma once

#include "quads.cuh"

namespace dmao {

inline constexpr int kEight = kVector;

// `whole`: all eight are there, and the first starts a quad. Zeros take the place of others.
template <class E>
__device__ __forceinline__ void load_eight(const E* source, int count, bool whole,
                                           float (&values)[kEight]) {
    const Eight<E> eight =
        whole ? load_eight(Whole{}, source, kEight) : load_eight(Broken{}, source, count);
#pragma unroll
    for (int i = 0; i < kEight; ++i) values[i] = eight[i];
}

template <class E>
__device__ __forceinline__ void store_eight(E* target, int count, bool whole,
                                            const float (&values)[kEight]) {
    if (whole) {
        store_eight(Whole{}, target, kEight, values);
    } else {
        store_eight(Broken{}, target, count, values);
    }
}

}  // namespace dmao
