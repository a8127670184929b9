// Eight neighbouring elements of a matrix, in 16 bytes (float: 32) where they are aligned.
#pragma once

#include "elements.cuh"
#include "ptx.cuh"

namespace dmao {

inline constexpr int kEight = 8;

template <class E>
__device__ __forceinline__ E narrow(float value) {
    if constexpr (sizeof(E) == 4) {
        return value;
    } else {
        return E{static_cast<std::uint16_t>(ptx::round_pair(E{}, value, 0.0f))};
    }
}

// `whole`: all eight are there, and the first is aligned to them. Zeros take the place of others.
template <class E>
__device__ __forceinline__ void load_eight(const E* source, int count, bool whole,
                                           float (&values)[kEight]) {
    if (!whole) {
#pragma unroll
        for (int i = 0; i < kEight; ++i) values[i] = i < count ? ptx::widen(source[i]) : 0.0f;
    } else if constexpr (sizeof(E) == 4) {
#pragma unroll
        for (int i = 0; i < kEight; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(source + i);
            values[i] = four.x;
            values[i + 1] = four.y;
            values[i + 2] = four.z;
            values[i + 3] = four.w;
        }
    } else {
        const uint4 loaded = *reinterpret_cast<const uint4*>(source);
        const unsigned words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            values[i] = ptx::widen(E{static_cast<std::uint16_t>(words[i / 2] >> i % 2 * 16)});
        }
    }
}

template <class E>
__device__ __forceinline__ void store_eight(E* target, int count, bool whole,
                                            const float (&values)[kEight]) {
    if (!whole) {
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            if (i < count) target[i] = narrow<E>(values[i]);
        }
    } else if constexpr (sizeof(E) == 4) {
#pragma unroll
        for (int i = 0; i < kEight; i += 4) {
            *reinterpret_cast<float4*>(target + i) = {values[i], values[i + 1], values[i + 2],
                                                      values[i + 3]};
        }
    } else {
        *reinterpret_cast<uint4*>(target) = {
            ptx::round_pair(E{}, values[0], values[1]), ptx::round_pair(E{}, values[2], values[3]),
            ptx::round_pair(E{}, values[4], values[5]), ptx::round_pair(E{}, values[6], values[7])};
    }
}

}  // namespace dmao
