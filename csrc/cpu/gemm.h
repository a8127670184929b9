// Matrix products out of cache-resident tiles: C += A B, C in float.
//
// B is packed into panels of kPanel columns, each stored k by k, so that the micro-kernel reads it
// linearly; the last panel is as narrow as whole vectors allow and padded with zeros. A is read in
// place, word by word (pack.h), either along its rows or (for A = X^T) along its columns. A block
// of kRows x kPanel of C stays in registers over all of k: per word of k, kVecs loads and kRows
// broadcasts feed kRows * kVecs multiply-adds, which keeps both FMA units busy as long as B streams
// from L2.
#pragma once

#include <cstdint>

#include "pack.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

enum class Order {
    row,    // A[i, k] = a[i * stride + k]
    column  // A[i, k] = a[k * stride + i]; of bfloat16, a[(k / 2) * 2 * stride + 2 * i + k % 2]
};

// A sum runs over at most so many products before it is added to C: shorter sums round less.
constexpr std::int64_t kSpan = 256;

inline Vec broadcast_word(const float* p) { return Vec(*p); }
inline Vec multiply_add(const float*, Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
#if defined(__AVX512BF16__)
inline Vec broadcast_word(const bfloat16* p) { return broadcast_pair(p); }
inline Vec multiply_add(const bfloat16*, Vec a, Vec b, Vec sum) { return dot(a, b, sum); }
#endif

// Whole words of k; tail: how many columns of C the last vector covers.
template <Order order, int rows, int vecs, class E>
void multiply_block(std::int64_t words, const E* a, std::int64_t stride, const E* b, float* c,
                    std::int64_t c_stride, int tail) {
    constexpr int w = Vec::width;
    while (words > 0) {
        decltype(Vec::v) sums[rows][vecs];
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < vecs; ++j) sums[i][j] = Vec(0.0f).v;
        }
        for (std::int64_t k = smaller(words, kSpan / kPerWord<E>); k > 0; --k) {
            decltype(Vec::v) columns[vecs];
#pragma GCC unroll 4
            for (int j = 0; j < vecs; ++j) {
                columns[j] = load(reinterpret_cast<const float*>(b) + j * w).v;
            }
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) {
                const Vec word =
                    broadcast_word(a + i * (order == Order::row ? stride : kPerWord<E>));
#pragma GCC unroll 4
                for (int j = 0; j < vecs; ++j) {
                    sums[i][j] = multiply_add(a, word, columns[j], sums[i][j]).v;
                }
            }
            a += (order == Order::row ? 1 : stride) * kPerWord<E>;
            b += vecs * w * kPerWord<E>;
        }
        words -= kSpan / kPerWord<E>;
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
template <Order order, int vecs, class E>
void multiply_panel(std::int64_t m, std::int64_t depth, const E* a, std::int64_t stride, const E* b,
                    float* c, std::int64_t c_stride, int tail) {
    // An odd k at the end of a row has no second half in memory.
    const std::int64_t rest = order == Order::row ? depth % kPerWord<E> : 0;
    const std::int64_t words = divide_up(depth - rest, kPerWord<E>);
    for (std::int64_t blocks = divide_up(m, kRows); blocks > 0; --blocks) {
        const std::int64_t rows = divide_up(m, blocks);
        const auto run = [&]<int r>(auto& self) {
            if (rows == r) {
                multiply_block<order, r, vecs>(words, a, stride, b, c, c_stride, tail);
                if (rest > 0) {
                    E last[r * kPerWord<E>] = {};
                    for (int i = 0; i < r; ++i) last[i * kPerWord<E>] = a[i * stride + depth - 1];
                    multiply_block<Order::column, r, vecs>(
                        1, last, r, b + words * kPerWord<E> * vecs * Vec::width, c, c_stride, tail);
                }
            } else if constexpr (r > 1) {
                self.template operator()<r - 1>(self);
            }
        };
        run.template operator()<kRows>(run);
        a += rows * (order == Order::row ? stride : kPerWord<E>);
        c += rows * c_stride;
        m -= rows;
    }
}

// C[m, n] += A[m, depth] B[first .. first + depth, n] with B in packed form, of `stored` rows.
// `first` is a whole number of words.
template <Order order, class E>
void multiply_rows(std::int64_t m, std::int64_t n, std::int64_t depth, const E* a,
                   std::int64_t stride, const E* b, std::int64_t first, std::int64_t stored,
                   float* c, std::int64_t c_stride) {
    for (std::int64_t column = 0; column < n; column += kPanel) {
        const std::int64_t columns = smaller(kPanel, n - column);
        const int vecs = static_cast<int>(divide_up(columns, Vec::width));
        const int tail = static_cast<int>(columns - (vecs - 1) * Vec::width);
        const E* panel = b + first * vecs * Vec::width;
        float* out = c + column;
        if (vecs == kVecs) {
            multiply_panel<order, kVecs>(m, depth, a, stride, panel, out, c_stride, tail);
        } else if (vecs == 1) {
            multiply_panel<order, 1>(m, depth, a, stride, panel, out, c_stride, tail);
        } else {
            multiply_panel<order, 2>(m, depth, a, stride, panel, out, c_stride, tail);
        }
        b += padded_depth<E>(stored) * vecs * Vec::width;
    }
}

// C[m, n] += A[m, depth] B[depth, n] with B in packed form.
template <Order order, class E>
void multiply(std::int64_t m, std::int64_t n, std::int64_t depth, const E* a, std::int64_t stride,
              const E* b, float* c, std::int64_t c_stride) {
    multiply_rows<order>(m, n, depth, a, stride, b, 0, depth, c, c_stride);
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
