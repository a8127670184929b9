// Matrix products out of cache-resident tiles: C += A B or C = start + A B, C in float.
//
// B is packed into panels of kPanel columns, each stored k by k, so that the micro-kernel reads it
// linearly; the last panel is as narrow as whole vectors allow and padded with zeros. A is read in
// place, word by word (operands.h), either along its rows or (for A = X^T) along its columns. A
// block of kRows x kPanel of C stays in registers over all of k: per word of k, kVecs loads and
// kRows broadcasts feed kRows * kVecs multiply-adds, which keeps both FMA units busy as long as B
// streams from L2.
#pragma once

#include <cstdint>

#include "operands.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

enum class Order {
    row,     // A[i, k] = a[i * stride + k]
    column,  // A[i, k] = a[k * stride + i]; of bfloat16, a[(k / 2) * 2 * stride + 2 * i + k % 2]
    strips   // strips of kRows rows, `stride` elements apart, each in Order::column of stride kRows
};

// Where C and the next A are: in the second-level cache, or perhaps far from it. Then each block
// asks for its part of them while its sums form; for what is near that would only take time.
enum class Data { near, far };

// A sum runs over at most so many products before it goes to C: shorter sums round less. All spans
// of a product are of equal length, because the longest one rounds worst.
constexpr std::int64_t kSpan = 256;

template <class E>
constexpr int kLine = 64 / sizeof(E);  // elements of a cache line

inline Vec broadcast_word(const float* p) { return Vec(*p); }
inline Vec word_of_ones(const float*) { return Vec(1.0f); }
inline Vec multiply_add(const float*, Vec a, Vec b, Vec sum) { return fma_in_place(a, b, sum); }
#if defined(__AVX512BF16__)
inline Vec broadcast_word(const bfloat16* p) { return broadcast_pair(p); }
inline Vec word_of_ones(const bfloat16*) { return make_pairs(Vec(1.0f), Vec(1.0f)); }
inline Vec multiply_add(const bfloat16*, Vec a, Vec b, Vec sum) { return dot(a, b, sum); }
#endif

// The sum over words of the first `columns` columns, by halves: less rounding than one by one.
template <class E>
Vec sum_words(const E* values, std::int64_t stride, std::int64_t words, std::int64_t columns) {
    constexpr std::int64_t one_by_one = 16;
    if (words > one_by_one) {
        const std::int64_t half = words / 2;
        return sum_words(values, stride, half, columns) +
               sum_words(values + half * stride, stride, words - half, columns);
    }
    const Vec ones = word_of_ones(values);
    Vec sum(0.0f);
    for (std::int64_t i = 0; i < words; ++i) {
        const float* word = reinterpret_cast<const float*>(values + i * stride);
        sum = multiply_add(values, load_some(word, columns), ones, sum);
    }
    return sum;
}

// The sums of a block += the products of one word of k.
template <Order order, int rows, int vecs, class E>
inline void multiply_word(const E* a, std::int64_t stride, const E* b,
                          decltype(Vec::v) (&sums)[rows][vecs]) {
    decltype(Vec::v) columns[vecs];
#pragma GCC unroll 4
    for (int j = 0; j < vecs; ++j) {
        columns[j] = load(reinterpret_cast<const float*>(b) + j * Vec::width).v;
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
        const Vec word = broadcast_word(a + i * (order == Order::row ? stride : kPerWord<E>));
#pragma GCC unroll 4
        for (int j = 0; j < vecs; ++j) sums[i][j] = multiply_add(a, word, columns[j], sums[i][j]).v;
    }
}

// Whole words of k; tail: how many columns of C the last vector covers. start: a row in whole
// vectors, to which the first span is added; null: to C. (Sums that began with it would round
// worse.) ahead: memory that will be needed soon, of Order::strips as much as a quarter of b, of
// far Order::row as many rows as those of a, with as many columns as c.
template <Order order, Data data, int rows, int vecs, class E>
void multiply_block(std::int64_t words, const E* a, std::int64_t stride, const E* b, float* c,
                    std::int64_t c_stride, int tail, const float* start, const E* ahead = nullptr) {
    constexpr int w = Vec::width, at_once = 4;
    const std::int64_t step = kPerWord<E> * (order == Order::row      ? 1
                                             : order == Order::column ? stride
                                                                      : kRows);
    if constexpr (data == Data::far) {
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < vecs * w; j += kLine<float>) {
                prefetch_to_write(c + i * c_stride + j);
            }
            for (int j = 0; j < vecs * w && order == Order::row; j += kLine<E>) {
                prefetch_far(ahead + i * stride + j);
            }
        }
    }
    std::int64_t spans = words == 0 ? 1 : divide_up(words, kSpan / kPerWord<E>);
    do {
        decltype(Vec::v) sums[rows][vecs];
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < vecs; ++j) sums[i][j] = Vec(0.0f).v;
        }
        const std::int64_t span = spans == 1 ? words : divide_up(words, spans);
        std::int64_t k = span;
        // Not one at a time: short sums would spend a good part of theirs on counting.
        for (; k >= at_once; k -= at_once) {
            if constexpr (order == Order::strips) {
                prefetch_far(ahead);
                ahead += vecs * w * kPerWord<E>;
            }
#pragma GCC unroll 4
            for (int q = 0; q < at_once; ++q) {
                multiply_word<order>(a + q * step, stride, b + q * vecs * w * kPerWord<E>, sums);
            }
            a += at_once * step;
            b += at_once * vecs * w * kPerWord<E>;
        }
        for (; k > 0; --k) {
            multiply_word<order>(a, stride, b, sums);
            a += step;
            b += vecs * w * kPerWord<E>;
        }
        words -= span;
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < vecs; ++j) {
                float* out = c + i * c_stride + j * w;
                const Vec sum(sums[i][j]);
                if (j + 1 < vecs || tail == w) {
                    store(out, sum + load(start == nullptr ? out : start + j * w));
                } else {
                    store(out, sum + load(start == nullptr ? out : start + j * w, tail), tail);
                }
            }
        }
        start = nullptr;
    } while (--spans > 0);
}

// All rows of A with one panel. Outside of strips the rows are dealt out evenly: a block of few
// rows would leave the FMA units waiting for B. Meanwhile strips ask for what follows the panel in
// memory: as a rule, the next one.
template <Order order, Data data, int vecs, class E>
void multiply_panel(std::int64_t m, std::int64_t depth, const E* a, std::int64_t stride, const E* b,
                    float* c, std::int64_t c_stride, int tail, const float* start, const E* next) {
    // An odd k at the end of a row has no second half in memory.
    const std::int64_t rest = order == Order::row ? depth % kPerWord<E> : 0;
    const std::int64_t words = divide_up(depth - rest, kPerWord<E>);
    const std::int64_t panel = padded_depth<E>(depth) * vecs * Vec::width;
    const std::int64_t share = m == 0 ? 0 : panel / divide_up(m, kRows);
    const E* ahead = order == Order::strips ? b + panel : next;
    for (std::int64_t blocks = divide_up(m, kRows); blocks > 0; --blocks) {
        const std::int64_t rows = order == Order::strips ? smaller(kRows, m) : divide_up(m, blocks);
        const auto run = [&]<int r>(auto& self) {
            if (rows == r) {
                multiply_block<order, data, r, vecs>(words, a, stride, b, c, c_stride, tail, start,
                                                     ahead);
                if (rest > 0) {
                    E last[r * kPerWord<E>] = {};
                    for (int i = 0; i < r; ++i) last[i * kPerWord<E>] = a[i * stride + depth - 1];
                    multiply_block<Order::column, Data::near, r, vecs>(
                        1, last, r, b + words * kPerWord<E> * vecs * Vec::width, c, c_stride, tail,
                        nullptr);
                }
            } else if constexpr (r > 1) {
                self.template operator()<r - 1>(self);
            }
        };
        run.template operator()<kRows>(run);
        a += order == Order::strips ? stride : rows * (order == Order::row ? stride : kPerWord<E>);
        if (ahead != nullptr) ahead += order == Order::strips ? share : rows * stride;
        c += rows * c_stride;
        m -= rows;
    }
}

// C[m, n] += A[m, depth] B[first .. first + depth, n] with B in packed form, of `stored` rows; or,
// given `start`, C[i, :] = start + that. start has padded_columns(n) elements; what C held is then
// not read. `first` is a whole number of words. next: of far Order::row, an A of the same stride
// that will be needed soon; asked for are its first n columns.
template <Order order, Data data = Data::near, class E>
void multiply_rows(std::int64_t m, std::int64_t n, std::int64_t depth, const E* a,
                   std::int64_t stride, const E* b, std::int64_t first, std::int64_t stored,
                   float* c, std::int64_t c_stride, const float* start = nullptr,
                   const E* next = nullptr) {
    for (std::int64_t column = 0; column < n; column += kPanel) {
        const std::int64_t columns = smaller(kPanel, n - column);
        const int vecs = static_cast<int>(divide_up(columns, Vec::width));
        const int tail = static_cast<int>(columns - (vecs - 1) * Vec::width);
        const E* panel = b + first * vecs * Vec::width;
        float* out = c + column;
        if (vecs == kVecs) {
            multiply_panel<order, data, kVecs>(m, depth, a, stride, panel, out, c_stride, tail,
                                               start, next);
        } else if (vecs == 1) {
            multiply_panel<order, data, 1>(m, depth, a, stride, panel, out, c_stride, tail, start,
                                           next);
        } else {
            multiply_panel<order, data, 2>(m, depth, a, stride, panel, out, c_stride, tail, start,
                                           next);
        }
        b += padded_depth<E>(stored) * vecs * Vec::width;
        if (start != nullptr) start += kPanel;
        if (next != nullptr) next += kPanel;
    }
}

// C[m, n] += A[m, depth] B[depth, n], or C[i, :] = start + A[i, :] B, likewise.
template <Order order, Data data = Data::near, class E>
void multiply(std::int64_t m, std::int64_t n, std::int64_t depth, const E* a, std::int64_t stride,
              const E* b, float* c, std::int64_t c_stride, const float* start = nullptr,
              const E* next = nullptr) {
    multiply_rows<order, data>(m, n, depth, a, stride, b, 0, depth, c, c_stride, start, next);
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
