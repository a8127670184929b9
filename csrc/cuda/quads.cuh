// Eight neighbouring elements as floats: what a thread reads and writes at once, by 16 bytes where
// their address allows it.
#pragma once

#include "ptx.cuh"

namespace dmao {

inline constexpr int kVector = 8;

// What one instruction moves. Its bytes may be those of anything.
struct __attribute__((aligned(16), may_alias)) Quad {
    unsigned words[4];
};

template <class E>
inline constexpr int kPerQuad = static_cast<int>(sizeof(Quad) / sizeof(E));

__device__ __forceinline__ bool starts_quad(const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % sizeof(Quad) == 0;
}

template <class E>
__device__ __forceinline__ E element_of(const Quad& quad, int i) {
    if constexpr (sizeof(E) == 4) {
        return __uint_as_float(quad.words[i]);
    } else {
        return E{static_cast<std::uint16_t>(quad.words[i / 2] >> i % 2 * 16)};
    }
}

// Of a quad of zeros.
template <class E>
__device__ __forceinline__ void set_element(Quad& quad, int i, E value) {
    if constexpr (sizeof(E) == 4) {
        quad.words[i] = __builtin_bit_cast(unsigned, value);
    } else {
        quad.words[i / 2] |= static_cast<unsigned>(value.bits) << i % 2 * 16;
    }
}

// Rounded to nearest even.
template <class E>
__device__ __forceinline__ Quad quad_of(const float* values) {
    Quad quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(E) == 4) {
            quad.words[i] = __builtin_bit_cast(unsigned, values[i]);
        } else {
            quad.words[i] = ptx::round_pair(E{}, values[2 * i], values[2 * i + 1]);
        }
    }
    return quad;
}

// The first `count` of eight elements, and zeros behind them.
template <class E>
__device__ __forceinline__ void load_vector(const E* p, int count, float (&values)[kVector]) {
    if (count == kVector && starts_quad(p)) {
#pragma unroll
        for (int q = 0; q < kVector / kPerQuad<E>; ++q) {
            const Quad quad = reinterpret_cast<const Quad*>(p)[q];
#pragma unroll
            for (int i = 0; i < kPerQuad<E>; ++i) {
                values[q * kPerQuad<E> + i] = ptx::widen(element_of<E>(quad, i));
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = i < count ? ptx::widen(p[i]) : 0.0f;
    }
}

template <class E>
__device__ __forceinline__ void store_vector(E* p, int count, const float (&values)[kVector]) {
    const bool whole = count == kVector && starts_quad(p);
#pragma unroll
    for (int q = 0; q < kVector / kPerQuad<E>; ++q) {
        const Quad quad = quad_of<E>(values + q * kPerQuad<E>);
        if (whole) {
            reinterpret_cast<Quad*>(p)[q] = quad;
        } else {
#pragma unroll
            for (int i = 0; i < kPerQuad<E>; ++i) {
                const int at = q * kPerQuad<E> + i;
                if (at < count) p[at] = element_of<E>(quad, i);
            }
        }
    }
}

}  // namespace dmao
