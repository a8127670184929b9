// Operands of the tile products in gemm.h: their element type, and the packed forms of B and A.
//
// Elements are float, or bfloat16 where the instruction set multiplies those, in pairs along k. A
// packed operand is made of 32-bit words accordingly: one float, or bfloat16 of two neighbouring k
// (an odd last one is paired with zero). That is all that tells the two apart here: what moves
// words about serves both.
#pragma once

#include <cstdint>

#include "convert.h"
#include "dmao/integers.h"
#include "simd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8, kVecs = 3;  // 24 sums, 3 of B and 1 of A: 28 of 32 registers
#else
constexpr int kRows = 6, kVecs = 2;  // 12 sums, 2 of B and 1 of A: 15 of 16 registers
#endif
constexpr int kPanel = kVecs * Vec::width;

// --- Elements

template <class T>
struct OperandOf {
    using Type = float;
};
#if defined(__AVX512BF16__)
template <>
struct OperandOf<bfloat16> {
    using Type = bfloat16;
};
#endif

// The type in which elements of T tensors are multiplied.
template <class T>
using Operand = typename OperandOf<T>::Type;

// Elements of a word.
template <class E>
constexpr int kPerWord = sizeof(float) / sizeof(E);

// k that a depth takes in packed form.
template <class E>
constexpr std::int64_t padded_depth(std::int64_t depth) {
    return round_up(depth, kPerWord<E>);
}

// The first count elements of a row as words; `count` in [0, Vec::width * kPerWord<E>].
template <class E, class T>
Vec load_words(const T* p, std::int64_t count) {
    if constexpr (kPerWord<E> == 1) {
        return load_some(p, count);
    } else {
        return load_pairs(p, static_cast<int>(count));
    }
}

// Stores the words of k = 0 and (where a word has one) k = 1 of Vec::width neighbouring columns.
inline void store_words(float* out, Vec first, Vec) { store(out, first); }
#if defined(__AVX512BF16__)
inline void store_words(bfloat16* out, Vec first, Vec second) {
    store(reinterpret_cast<float*>(out), make_pairs(first, second));
}
#endif

// `count` elements as an A operand of Order::row: in place, or converted into the buffer.
inline const float* as_operand(const float* source, std::int64_t, float*) { return source; }
inline const bfloat16* as_operand(const bfloat16* source, std::int64_t, bfloat16*) {
    return source;
}
inline const float* as_operand(const bfloat16* source, std::int64_t count, float* buffer) {
    convert(source, count, buffer);
    return buffer;
}

// --- Packed B: panels of kPanel columns

// Columns that an n-column B takes in packed form.
inline std::int64_t padded_columns(std::int64_t n) { return round_up(n, Vec::width); }

// Columns of the panel that starts at column `first`.
inline std::int64_t panel_columns(std::int64_t n, std::int64_t first) {
    return smaller(kPanel, padded_columns(n) - first);
}

// The place of row k, columns n ... n + Vec::width - 1 of a packed B of `depth` rows.
template <class E>
E* packed(E* panels, std::int64_t depth, std::int64_t columns, std::int64_t k, std::int64_t n) {
    const std::int64_t first = n / kPanel * kPanel;
    return panels + first * depth + k * panel_columns(columns, first) + n - first;
}

// sums[n] += the sum over k of B[k, n], of a packed B whose columns are whole vectors.
inline void add_columns(const float* panels, std::int64_t depth, std::int64_t columns,
                        float* sums) {
    for (std::int64_t n = 0; n < columns; n += Vec::width) {
        Vec sum(0.0f);
        for (std::int64_t k = 0; k < depth; ++k) {
            sum = sum + load(packed(panels, depth, columns, k, n));
        }
        store(sums + n, load(sums + n) + sum);
    }
}

// A matrix of which only some rows or columns take part, in ascending order (null: all).
template <class T>
struct Selection {
    const T* data;
    std::int64_t stride;
    const std::int32_t* rows;
    const std::int32_t* columns;

    // The first count elements from column `column` on in row `row`, both counted in the selection,
    // as words of E.
    template <class E>
    Vec load_row(std::int64_t row, std::int64_t column, std::int64_t count) const {
        const T* source = data + (rows ? rows[row] : row) * stride;
        if (columns == nullptr) return load_words<E>(source + column, count);
        const std::int32_t* c = columns + column;
        if (c[count - 1] - c[0] == count - 1) return load_words<E>(source + c[0], count);
        T lanes[Vec::width * kPerWord<E>] = {};
        for (int i = 0; i < count; ++i) lanes[i] = source[c[i]];
        return load_words<E>(lanes, count);
    }
};

// B[k, n] = m[k0 + k, n0 + n], one panel.
template <class T, class E>
void pack_panel(const Selection<T>& m, std::int64_t k0, std::int64_t depth, std::int64_t n0,
                std::int64_t columns, E* panel) {
    const std::int64_t width = padded_columns(columns);
    for (std::int64_t k = 0; k < depth; k += kPerWord<E>) {
        for (std::int64_t n = 0; n < columns; n += Vec::width) {
            const std::int64_t count = smaller(Vec::width, columns - n);
            const Vec first = m.template load_row<float>(k0 + k, n0 + n, count);
            Vec second(0.0f);
            if (kPerWord<E> > 1 && k + 1 < depth) {
                second = m.template load_row<float>(k0 + k + 1, n0 + n, count);
            }
            store_words(panel + k * width + n * kPerWord<E>, first, second);
        }
    }
}

// Groups of `unit` lanes from a and from b in turns, of the lower (half = 0) or the upper halves
// (half = 1) of every `span` lanes.
template <int half, int unit, int span>
decltype(Vec::v) interleave(decltype(Vec::v) a, decltype(Vec::v) b) {
    constexpr int w = Vec::width;
    using Lanes = std::int32_t __attribute__((vector_size(sizeof(Vec))));
    Lanes pick;
    for (int i = 0; i < w; ++i) {
        const int place = i % span;
        pick[i] = i - place + half * span / 2 + place / (2 * unit) * unit + place % unit +
                  place / unit % 2 * w;
    }
#ifdef __clang__
    decltype(Vec::v) result;
    for (int i = 0; i < w; ++i) result[i] = pick[i] < w ? a[pick[i]] : b[pick[i] - w];
    return result;
#else
    return __builtin_shuffle(a, b, pick);
#endif
}

// Transposes a square block of words in place: blocks of 4 x 4 within the 128-bit parts of
// registers, where shuffles are cheap, then these parts by perfect shuffles.
inline void transpose(decltype(Vec::v) (&rows)[Vec::width]) {
    constexpr int w = Vec::width;
    for (int i = 0; i < w; i += 4) {
        const auto low0 = interleave<0, 1, 4>(rows[i], rows[i + 1]);
        const auto high0 = interleave<1, 1, 4>(rows[i], rows[i + 1]);
        const auto low1 = interleave<0, 1, 4>(rows[i + 2], rows[i + 3]);
        const auto high1 = interleave<1, 1, 4>(rows[i + 2], rows[i + 3]);
        rows[i] = interleave<0, 2, 4>(low0, low1);
        rows[i + 1] = interleave<1, 2, 4>(low0, low1);
        rows[i + 2] = interleave<0, 2, 4>(high0, high1);
        rows[i + 3] = interleave<1, 2, 4>(high0, high1);
    }
    for (int parts = 4; parts < w; parts *= 2) {
        decltype(Vec::v) shuffled[w];
        for (int i = 0; i < w / 2; ++i) {
            const int target = i / 4 * 8 + i % 4;
            shuffled[target] = interleave<0, 4, w>(rows[i], rows[i + w / 2]);
            shuffled[target + 4] = interleave<1, 4, w>(rows[i], rows[i + w / 2]);
        }
        for (int i = 0; i < w; ++i) rows[i] = shuffled[i];
    }
}

// B[k, n] = m[n0 + n, k0 + k], one panel.
template <class T, class E>
void pack_panel_transposed(const Selection<T>& m, std::int64_t k0, std::int64_t depth,
                           std::int64_t n0, std::int64_t columns, E* panel) {
    constexpr std::int64_t step = Vec::width * kPerWord<E>;
    const std::int64_t width = padded_columns(columns);
    for (std::int64_t n = 0; n < width; n += Vec::width) {
        for (std::int64_t k = 0; k < depth; k += step) {
            const std::int64_t count = smaller(step, depth - k);
            decltype(Vec::v) block[Vec::width];
            for (int i = 0; i < Vec::width; ++i) {
                const bool inside = n + i < columns;
                block[i] =
                    (inside ? m.template load_row<E>(n0 + n + i, k0 + k, count) : Vec(0.0f)).v;
            }
            transpose(block);
            float* out = reinterpret_cast<float*>(panel + k * width) + n;
            for (int j = 0; j < divide_up(count, kPerWord<E>); ++j) {
                store(out + j * width, Vec(block[j]));
            }
        }
    }
}

// --- Packed A

// A[i, k] = rows[i * stride + k], i < count <= kRows: a strip of Order::strips, of all its kRows
// rows, padded with zeros.
template <class T, class E>
void pack_strip(const T* rows, std::int64_t stride, std::int64_t depth, std::int64_t count,
                E* strip) {
    constexpr int w = Vec::width, parts = divide_up(kRows, w);
    const std::int64_t words = divide_up(depth, kPerWord<E>);
    float* out = reinterpret_cast<float*>(strip);
    for (std::int64_t k = 0; k < words; k += w, rows += w * kPerWord<E>) {
        const std::int64_t rest = smaller(w * kPerWord<E>, depth - k * kPerWord<E>);
        decltype(Vec::v) block[parts][w];
        for (int part = 0; part < parts; ++part) {
            for (int i = 0; i < w; ++i) {
                const int row = part * w + i;
                block[part][i] =
                    (row < count ? load_words<E>(rows + row * stride, rest) : Vec(0.0f)).v;
            }
            transpose(block[part]);
        }
        // In ascending order: what a vector holds beyond its kRows words is overwritten.
        const auto put = [&](int j, const auto& put_one) {
            for (int part = 0; part < parts; ++part) {
                const std::int64_t place = (k + j) * kRows + part * w;
                put_one(out + place, Vec(block[part][j]), words * kRows - place);
            }
        };
        if (k + w < words) {
            for (int j = 0; j < w; ++j) put(j, [](float* p, Vec v, std::int64_t) { store(p, v); });
        } else {
            for (int j = 0; j < words - k; ++j) put(j, store_some<float>);
        }
    }
}

// A[i, k] = rows[k * stride + i], i < columns: an operand of Order::column whose stride is
// `out_stride`, at least `columns` rounded up to whole vectors; the columns between are zeroed.
template <class T, class E>
void pack_columns(const T* rows, std::int64_t stride, std::int64_t depth, std::int64_t columns,
                  E* out, std::int64_t out_stride) {
    for (std::int64_t k = 0; k < depth; k += kPerWord<E>) {
        const T* row = rows + k * stride;
        for (std::int64_t i = 0; i < columns; i += Vec::width) {
            const std::int64_t count = smaller(Vec::width, columns - i);
            const Vec first = load_words<float>(row + i, count);
            Vec second(0.0f);
            if (kPerWord<E> > 1 && k + 1 < depth) {
                second = load_words<float>(row + stride + i, count);
            }
            store_words(out + k * out_stride + i * kPerWord<E>, first, second);
        }
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
