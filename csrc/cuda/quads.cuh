// Eight neighbouring elements: what a thread reads and writes at once, by quads of 16 bytes where
// addresses allow it.
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

// The bits of eight elements.
template <class E>
struct Eight {
    Quad quads[kVector / kPerQuad<E>];

    __device__ __forceinline__ float operator[](int i) const {
        return ptx::widen(element_of<E>(quads[i / kPerQuad<E>], i % kPerQuad<E>));
    }
};

// Whether all of eight elements are there, and start a quad. As the type of an argument, since the
// two cases must not meet before all that is loaded is there: what one does with elements that it
// has loaded one by one would wait for the quads of the other.
struct Whole {
    static constexpr bool value = true;
};
struct Broken {
    static constexpr bool value = false;
};

// The first `count` of eight elements, and zeros behind them.
template <class E, class Kind>
__device__ __forceinline__ Eight<E> load_eight(Kind, const E* p, int count) {
    Eight<E> eight{};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        const int quad = i / kPerQuad<E>, place = i % kPerQuad<E>;
        if constexpr (Kind::value) {
            if (place == 0) eight.quads[quad] = reinterpret_cast<const Quad*>(p)[quad];
        } else {
            if (i < count) set_element(eight.quads[quad], place, p[i]);
        }
    }
    return eight;
}

template <class E, class Kind>
__device__ __forceinline__ void store_eight(Kind, E* p, int count, const float (&values)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; i += kPerQuad<E>) {
        const Quad quad = quad_of<E>(values + i);
        if constexpr (Kind::value) {
            *reinterpret_cast<Quad*>(p + i) = quad;
        } else {
#pragma unroll
            for (int k = 0; k < kPerQuad<E>; ++k) {
                if (i + k < count) p[i + k] = element_of<E>(quad, k);
            }
        }
    }
}

}  // namespace dmao
