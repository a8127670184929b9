// The transforms of Winograd's convolution F(2 x 2, 3 x 3) (Lavin and Gray, 2015), channels last.
//
// The 2 x 2 outputs of a tile are A' [(B' x B) * (G g G')] A with 4 x 4 inputs x and 3 x 3 taps g:
// 16 products in place of 36. B holds 0 and +-1 only, G 1/2 as well, so that little is rounded; the
// gradient of the taps is the transposed of the same, G' [(B' x B) * (A dy A')] G.
//
// The 16 positions of a transformed tile are taken row by row: a function of row i makes or uses
// the four of that row, `stride` apart in memory, so that few of them are in the cache at a time.
// Tiles lie side by side, with whole vectors of channels (`lanes`).
#pragma once

#include "operands.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr int kPositions = 4;  // in a row

// B': position i is input kOwn[i] + kSign[i] * input kOther[i].
constexpr int kOwn[kPositions] = {0, 1, 2, 3}, kOther[kPositions] = {2, 2, 1, 1};
constexpr float kSign[kPositions] = {-1.0f, 1.0f, -1.0f, -1.0f};

// Row i of B' x B. Tile t has the pixels 2 t ... 2 t + 3 of the four rows at `rows`.
void transform_inputs(int i, const float* rows, std::int64_t row_size, std::int64_t tiles,
                      std::int64_t lanes, float* out, std::int64_t stride) {
    const float *own = rows + kOwn[i] * row_size, *other = rows + kOther[i] * row_size;
    const Vec sign(kSign[i]);
    for (std::int64_t c = 0; c < lanes; c += Vec::width) {
        const auto column = [&](std::int64_t pixel) {
            return fma(sign, load(other + pixel * lanes + c), load(own + pixel * lanes + c));
        };
        Vec first = column(0), second = column(1);
        for (std::int64_t t = 0; t < tiles; ++t) {
            const Vec third = column(2 * t + 2), fourth = column(2 * t + 3);
            float* to = out + t * lanes + c;
            store(to, first - third);
            store(to + stride, second + third);
            store(to + 2 * stride, third - second);
            store(to + 3 * stride, fourth - second);
            first = third;
            second = fourth;
        }
    }
}

// What row i of the products adds to the outputs A' [...] A. Tile t has the pixels 2 t and 2 t + 1
// of the two rows at `rows`. Rows come in order; the first ones set the outputs.
template <int i>
void transform_outputs(const float* products, std::int64_t stride, std::int64_t tiles,
                       std::int64_t lanes, float* rows, std::int64_t row_size) {
    const auto add = [&](std::int64_t at, Vec value) {
        float *upper = rows + at, *lower = upper + row_size;
        if constexpr (i == 0) store(upper, value);
        if constexpr (i == 1) store(lower, value);
        if constexpr (i == 1 || i == 2) store(upper, load(upper) + value);
        if constexpr (i == 2) store(lower, load(lower) - value);
        if constexpr (i == 3) store(lower, load(lower) + value);
    };
    for (std::int64_t t = 0; t < tiles; ++t) {
        for (std::int64_t c = 0; c < lanes; c += Vec::width) {
            const float* from = products + t * lanes + c;
            const Vec second = load(from + stride), third = load(from + 2 * stride);
            add(2 * t * lanes + c, load(from) + second + third);
            add((2 * t + 1) * lanes + c, second - third + load(from + 3 * stride));
        }
    }
}

// Row i of A dy A' as four packed B, a row of them for each tile, from row `k` on. dy is in two
// rows at `rows`, as outputs are.
void transform_gradients(int i, const float* rows, std::int64_t row_size, std::int64_t tiles,
                         std::int64_t lanes, float* panels, std::int64_t stride, std::int64_t depth,
                         std::int64_t k) {
    const Vec upper(i == 3 ? 0.0f : 1.0f), lower(i == 0 ? 0.0f : i == 2 ? -1.0f : 1.0f);
    for (std::int64_t t = 0; t < tiles; ++t) {
        for (std::int64_t c = 0; c < lanes; c += Vec::width) {
            const float* from = rows + 2 * t * lanes + c;
            const auto column = [&](const float* p) {
                return fma(lower, load(p + row_size), upper * load(p));
            };
            const Vec left = column(from), right = column(from + lanes);
            float* to = packed(panels, depth, lanes, k + t, c);
            store(to, left);
            store(to + stride, left + right);
            store(to + 2 * stride, left - right);
            store(to + 3 * stride, right);
        }
    }
}

// G g G' of taps [3, 3, in, out]: 16 packed B of `in` rows, `stride` apart.
template <class T>
void transform_taps(const T* taps, std::int64_t in, std::int64_t out, float* panels,
                    std::int64_t stride) {
    const Vec half(0.5f);
    const auto spread = [&](Vec a, Vec b, Vec c, Vec(&to)[kPositions]) {
        const Vec outer = half * (a + c), inner = half * b;
        to[0] = a;
        to[1] = outer + inner;
        to[2] = outer - inner;
        to[3] = c;
    };
    for (std::int64_t k = 0; k < in; ++k) {
        for (std::int64_t n = 0; n < out; n += Vec::width) {
            const int count = static_cast<int>(smaller(Vec::width, out - n));
            const auto tap = [&](int row, int column) {
                return load(taps + ((3 * row + column) * in + k) * out + n, count);
            };
            const Vec zero(0.0f);
            Vec rows[3][kPositions] = {
                {zero, zero, zero, zero}, {zero, zero, zero, zero}, {zero, zero, zero, zero}};
            for (int r = 0; r < 3; ++r) spread(tap(r, 0), tap(r, 1), tap(r, 2), rows[r]);
            for (int j = 0; j < kPositions; ++j) {
                Vec column[kPositions] = {zero, zero, zero, zero};
                spread(rows[0][j], rows[1][j], rows[2][j], column);
                for (int i = 0; i < kPositions; ++i) {
                    store(packed(panels + (kPositions * i + j) * stride, in, out, k, n), column[i]);
                }
            }
        }
    }
}

// G' [sums] G: the gradient of taps [3, 3, in, out] from 16 sums [in, lanes], `stride` apart.
template <class T>
void transform_sums(const float* sums, std::int64_t stride, std::int64_t in, std::int64_t out,
                    std::int64_t lanes, T* grad_taps) {
    const Vec half(0.5f);
    const auto gather = [&](const Vec(&from)[kPositions], Vec(&to)[3]) {
        const Vec middle = half * (from[1] + from[2]);
        to[0] = from[0] + middle;
        to[1] = half * (from[1] - from[2]);
        to[2] = from[3] + middle;
    };
    for (std::int64_t k = 0; k < in; ++k) {
        for (std::int64_t n = 0; n < out; n += Vec::width) {
            const int count = static_cast<int>(smaller(Vec::width, out - n));
            const Vec zero(0.0f);
            Vec rows[3][kPositions] = {
                {zero, zero, zero, zero}, {zero, zero, zero, zero}, {zero, zero, zero, zero}};
            for (int j = 0; j < kPositions; ++j) {
                Vec column[kPositions] = {zero, zero, zero, zero}, three[3] = {zero, zero, zero};
                for (int i = 0; i < kPositions; ++i) {
                    column[i] = load(sums + (kPositions * i + j) * stride + k * lanes + n);
                }
                gather(column, three);
                for (int r = 0; r < 3; ++r) rows[r][j] = three[r];
            }
            for (int r = 0; r < 3; ++r) {
                Vec three[3] = {zero, zero, zero};
                gather(rows[r], three);
                for (int s = 0; s < 3; ++s) {
                    store(grad_taps + ((3 * r + s) * in + k) * out + n, three[s], count);
                }
            }
        }
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
