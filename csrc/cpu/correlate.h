// Correlation along rows, one vector of columns at a time: out[p] = sum over q of x[p + q] w[q].
//
// All three products of a depthwise convolution are of this kind: the output (x: input rows, w:
// taps), the gradient of the input (x: output gradients, w: taps mirrored) and that of the taps (x:
// input rows, w: output gradients). Every multiply-add needs its own x and w, so what bounds the
// loop is loading them: a block of kOutputs sums and kTaps of w stays in registers, and each row of
// x is loaded once per block and feeds up to kTaps of them, 17 loads for 40 multiply-adds.
#pragma once

#include <cstdint>

#include "dmao/integers.h"
#include "simd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kOutputs = 20, kTaps = 8;  // and 1 of x: 29 of 32 registers
#else
constexpr int kOutputs = 10, kTaps = 4;  // and 1 of x: 15 of 16 registers
#endif

// Row i is at data + i * stride.
struct Rows {
    const float* data;
    std::int64_t stride;

    const float* at(std::int64_t row) const { return data + row * stride; }
    Rows from(std::int64_t row) const { return {at(row), stride}; }
};

// sums[p] += sum over q < taps of x[p + q] w[q].
template <int outputs, int taps>
inline void add_taps(const Rows& x, const Rows& w, decltype(Vec::v) (&sums)[outputs]) {
    decltype(Vec::v) weights[taps];
#pragma GCC unroll 8
    for (int q = 0; q < taps; ++q) weights[q] = load(w.at(q)).v;
#pragma GCC unroll 32
    for (int i = 0; i < outputs + taps - 1; ++i) {
        const Vec row = load(x.at(i));
#pragma GCC unroll 8
        for (int q = 0; q < taps; ++q) {
            const int p = i - q;
            if (p >= 0 && p < outputs) sums[p] = fma(row, weights[q], sums[p]).v;
        }
    }
}

template <int outputs>
void correlate_block(std::int64_t taps, Rows x, Rows w, float* out) {
    decltype(Vec::v) sums[outputs];
#pragma GCC unroll 32
    for (int p = 0; p < outputs; ++p) sums[p] = Vec(0.0f).v;
    for (; taps >= kTaps; taps -= kTaps) {
        add_taps<outputs, kTaps>(x, w, sums);
        x = x.from(kTaps);
        w = w.from(kTaps);
    }
    for (; taps > 0; --taps) {
        add_taps<outputs, 1>(x, w, sums);
        x = x.from(1);
        w = w.from(1);
    }
#pragma GCC unroll 32
    for (int p = 0; p < outputs; ++p) store(out + p * Vec::width, Vec(sums[p]));
}

// put(p, out[p]) for p < outputs, in order. After put(p) row p of x is not read again, so that it
// may be put there.
template <class Put>
void correlate(std::int64_t outputs, std::int64_t taps, Rows x, const Rows& w, const Put& put) {
    float sums[kOutputs * Vec::width];
    std::int64_t first = 0;
    for (std::int64_t blocks = divide_up(outputs, kOutputs); blocks > 0; --blocks) {
        const std::int64_t count = divide_up(outputs - first, blocks);
        const auto run = [&]<int n>(auto& self) {
            if (count == n) {
                correlate_block<n>(taps, x.from(first), w, sums);
            } else if constexpr (n > 1) {
                self.template operator()<n - 1>(self);
            }
        };
        run.template operator()<kOutputs>(run);
        for (std::int64_t p = 0; p < count; ++p) put(first + p, load(sums + p * Vec::width));
        first += count;
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
