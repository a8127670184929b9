// Matrix products out of cache-resident tiles: C += A B in float.
//
// B is packed into panels of kPanel columns, each stored k by k, so that the micro-kernel reads it
// linearly; the last panel is as narrow as whole vectors allow and padded with zeros. A is read in
// place, element by element, either along its rows or (for A = X^T) along its columns. A block of
// kRows x kPanel of C stays in registers over all of k: per k, kVecs loads and kRows broadcasts
// feed kRows * kVecs multiply-adds, which keeps both FMA units busy as long as B streams from L2.
#pragma once

#include <cstdint>

#include "simd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8, kVecs = 3;  // 24 sums, 3 of B and 1 of A: 28 of 32 registers
#else
constexpr int kRows = 6, kVecs = 2;  // 12 sums, 2 of B and 1 of A: 15 of 16 registers
#endif
constexpr int kPanel = kVecs * Vec::width;

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }
inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// --- Packing

// Columns that an n-column B takes in packed form.
inline std::int64_t padded_columns(std::int64_t n) { return round_up(n, Vec::width); }

// Columns of the panel that starts at column `first`.
inline std::int64_t panel_columns(std::int64_t n, std::int64_t first) {
    return smaller(kPanel, padded_columns(n) - first);
}

// A matrix of which only some rows or columns take part, in ascending order (null: all).
template <class T>
struct Selection {
    const T* data;
    std::int64_t stride;
    const std::int32_t* rows;
    const std::int32_t* columns;

    // The first count elements from column `column` on in row `row`, both counted in the selection.
    Vec load_row(std::int64_t row, std::int64_t column, int count) const {
        const T* source = data + (rows ? rows[row] : row) * stride;
        if (columns == nullptr) return load(source + column, count);
        const std::int32_t* c = columns + column;
        if (c[count - 1] - c[0] == count - 1) return load(source + c[0], count);
        float lanes[Vec::width] = {};
        for (int i = 0; i < count; ++i) lanes[i] = to_float(source[c[i]]);
        return load(lanes);
    }
};

// B[k, n] = m[k0 + k, n0 + n], one panel.
template <class T>
void pack_panel(const Selection<T>& m, std::int64_t k0, std::int64_t depth, std::int64_t n0,
                std::int64_t columns, float* panel) {
    const std::int64_t width = padded_columns(columns);
    for (std::int64_t k = 0; k < depth; ++k) {
        for (std::int64_t n = 0; n < columns; n += Vec::width) {
            const int count = static_cast<int>(smaller(Vec::width, columns - n));
            store(panel + k * width + n, m.load_row(k0 + k, n0 + n, count));
        }
    }
}

// a[0] b[0] a[1] b[1] ...: from the lower halves (half = 0) or the upper halves (half = 1).
template <int half>
Vec interleave(Vec a, Vec b) {
    constexpr int w = Vec::width;
    using Lanes = std::int32_t __attribute__((vector_size(sizeof(Vec))));
    Lanes pick;
    for (int i = 0; i < w; ++i) pick[i] = half * w / 2 + i / 2 + i % 2 * w;
#ifdef __clang__
    decltype(Vec::v) result;
    for (int i = 0; i < w; ++i) result[i] = pick[i] < w ? a.v[pick[i]] : b.v[pick[i] - w];
    return result;
#else
    return __builtin_shuffle(a.v, b.v, pick);
#endif
}

// Transposes a square block in place: log2(width) perfect shuffles of its rows.
inline void transpose(decltype(Vec::v) (&rows)[Vec::width]) {
    constexpr int w = Vec::width;
    for (int step = 1; step < w; step *= 2) {
        decltype(Vec::v) shuffled[w];
        for (int i = 0; i < w / 2; ++i) {
            shuffled[2 * i] = interleave<0>(rows[i], rows[i + w / 2]).v;
            shuffled[2 * i + 1] = interleave<1>(rows[i], rows[i + w / 2]).v;
        }
        for (int i = 0; i < w; ++i) rows[i] = shuffled[i];
    }
}

// B[k, n] = m[n0 + n, k0 + k], one panel.
template <class T>
void pack_panel_transposed(const Selection<T>& m, std::int64_t k0, std::int64_t depth,
                           std::int64_t n0, std::int64_t columns, float* panel) {
    const std::int64_t width = padded_columns(columns);
    for (std::int64_t n = 0; n < width; n += Vec::width) {
        for (std::int64_t k = 0; k < depth; k += Vec::width) {
            const int count = static_cast<int>(smaller(Vec::width, depth - k));
            decltype(Vec::v) block[Vec::width];
            for (int i = 0; i < Vec::width; ++i) {
                const bool inside = n + i < columns;
                block[i] = (inside ? m.load_row(n0 + n + i, k0 + k, count) : Vec(0.0f)).v;
            }
            transpose(block);
            for (int j = 0; j < count; ++j) store(panel + (k + j) * width + n, Vec(block[j]));
        }
    }
}

// --- Multiplication

enum class Order {
    row,    // A[i, k] = a[i * stride + k]
    column  // A[i, k] = a[k * stride + i]
};

// A sum runs over at most so many products before it is added to C: shorter sums round less.
constexpr std::int64_t kSpan = 256;

// tail: how many columns of C the last vector covers.
template <Order order, int rows, int vecs>
void multiply_block(std::int64_t depth, const float* a, std::int64_t stride, const float* b,
                    float* c, std::int64_t c_stride, int tail) {
    constexpr int w = Vec::width;
    while (depth > 0) {
        decltype(Vec::v) sums[rows][vecs];
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < vecs; ++j) sums[i][j] = Vec(0.0f).v;
        }
        for (std::int64_t k = smaller(depth, kSpan); k > 0; --k) {
            decltype(Vec::v) columns[vecs];
#pragma GCC unroll 4
            for (int j = 0; j < vecs; ++j) columns[j] = load(b + j * w).v;
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) {
                const Vec element(order == Order::row ? a[i * stride] : a[i]);
#pragma GCC unroll 4
                for (int j = 0; j < vecs; ++j) sums[i][j] = fma(element, columns[j], sums[i][j]).v;
            }
            a += order == Order::row ? 1 : stride;
            b += vecs * w;
        }
        depth -= kSpan;
        for (int i = 0; i < rows; ++i) {
            float* out = c + i * c_stride;
            for (int j = 0; j + 1 < vecs; ++j) store(out + j * w, load(out + j * w) + sums[i][j]);
            out += (vecs - 1) * w;
            const Vec last(sums[i][vecs - 1]);
            tail == w ? store(out, load(out) + last) : store(out, load(out, tail) + last, tail);
        }
    }
}

// All rows of A with one panel. The rows are dealt out evenly: a block of few rows would leave the
// FMA units waiting for B.
template <Order order, int vecs>
void multiply_panel(std::int64_t m, std::int64_t depth, const float* a, std::int64_t stride,
                    const float* b, float* c, std::int64_t c_stride, int tail) {
    for (std::int64_t blocks = divide_up(m, kRows); blocks > 0; --blocks) {
        const std::int64_t rows = divide_up(m, blocks);
        const auto run = [&]<int r>(auto& self) {
            if (rows == r) {
                multiply_block<order, r, vecs>(depth, a, stride, b, c, c_stride, tail);
            } else if constexpr (r > 1) {
                self.template operator()<r - 1>(self);
            }
        };
        run.template operator()<kRows>(run);
        a += order == Order::row ? rows * stride : rows;
        c += rows * c_stride;
        m -= rows;
    }
}

// C[m, n] += A[m, depth] B[depth, n] with B in packed form.
template <Order order>
void multiply(std::int64_t m, std::int64_t n, std::int64_t depth, const float* a,
              std::int64_t stride, const float* b, float* c, std::int64_t c_stride) {
    for (std::int64_t first = 0; first < n; first += kPanel) {
        const std::int64_t columns = smaller(kPanel, n - first);
        const int vecs = static_cast<int>(divide_up(columns, Vec::width));
        const int tail = static_cast<int>(columns - (vecs - 1) * Vec::width);
        float* out = c + first;
        if (vecs == kVecs) {
            multiply_panel<order, kVecs>(m, depth, a, stride, b, out, c_stride, tail);
        } else if (vecs == 1) {
            multiply_panel<order, 1>(m, depth, a, stride, b, out, c_stride, tail);
        } else {
            multiply_panel<order, 2>(m, depth, a, stride, b, out, c_stride, tail);
        }
        b += depth * vecs * Vec::width;
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
