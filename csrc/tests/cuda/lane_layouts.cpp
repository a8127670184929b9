// lane_layouts: products and loads of matrices whose fragments are as CuTe says (cute_layouts.h,
// which csrc/tests/cuda_headers/cute_layouts.cpp prints); prints "right" or "wrong: ...".
#include <cstdio>
#include <stdexcept>
#include <string>

#include "cute_layouts.h"
#include "ptx.cuh"

namespace dmao {
namespace {

void expect(bool right, const std::string& what) {
    if (!right) throw std::logic_error("wrong: " + what);
}

// Small enough to be exact in every type, and unlike in every place.
float value_of(int place) { return static_cast<float>(place * 7 % 31 - 15); }

template <class E>
void put(unsigned* words, int i, float value) {
    if constexpr (sizeof(E) == 4) {
        words[i] = __builtin_bit_cast(unsigned, value);
    } else {
        const unsigned bits = ptx::round_half(E{}, value);
        words[i / 2] = i % 2 == 0 ? bits : words[i / 2] | bits << 16;
    }
}

// One warp: A [16, k] and B [k, 8], given by places of values in fragments.
template <class E, int values>
void multiply(const int (*a_places)[values], const int (*b_places)[values / 2],
              const int (*c_places)[4], float* c) {
    const int lane = static_cast<int>(threadIdx.x);
    unsigned a[4], b[2];
    for (int i = 0; i < values; ++i) put<E>(a, i, value_of(a_places[lane][i]));
    for (int i = 0; i < values / 2; ++i) put<E>(b, i, value_of(1 + b_places[lane][i]));
    float d[4] = {};
    ptx::multiply<E>(d, a, b);
    for (int i = 0; i < 4; ++i) c[c_places[lane][i]] = d[i];
}

template <class E, int values>
void check_product(const int (*a)[values], const int (*b)[values / 2], const int (*c)[4]) {
    float found[16 * 8] = {};
    cuda_on_host::run(multiply<E, values>, {1}, {32}, 0, a, b, c, found);
    for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 8; ++column) {
            float sum = 0.0f;
            for (int k = 0; k < 2 * values; ++k) {
                sum += value_of(row + 16 * k) * value_of(1 + column + 8 * k);
            }
            expect(found[row + 16 * column] == sum,
                   "product of elements of " + std::to_string(sizeof(E)) + " bytes");
        }
    }
}

void load(bool transposed, std::uint16_t (*found)[8]) {
    DMAO_SHARED(std::uint16_t, elements, 256);
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = 0; i < 8; ++i) {
        elements[lane * 8 + i] = static_cast<std::uint16_t>(lane * 8 + i);
    }
    __syncwarp();
    unsigned words[4];
    if (transposed) {
        ptx::load_transposed(words, elements + lane * 8);
    } else {
        ptx::load_matrices(words, elements + lane * 8);
    }
    for (int i = 0; i < 8; ++i) {
        found[lane][i] = static_cast<std::uint16_t>(words[i / 2] >> i % 2 * 16);
    }
}

void check_load(bool transposed, const int (*places)[8]) {
    std::uint16_t found[32][8];
    cuda_on_host::run(load, {1}, {32}, 0, transposed, found);
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 8; ++i) {
            expect(found[lane][i] == places[lane][i], transposed ? "transposed load" : "load");
        }
    }
}

}  // namespace
}  // namespace dmao

int main() {
    try {
        dmao::check_product<dmao::bfloat16>(kA16, kB16, kC16);
        dmao::check_product<dmao::float16>(kA16, kB16, kC16);
        dmao::check_product<float>(kA8, kB8, kC8);
        dmao::check_load(false, kRows);
        dmao::check_load(true, kColumns);
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    std::puts("right");
}
