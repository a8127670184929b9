// Pieces of scores in cache: how operands are loaded, the products that a band of columns allows
// to shorten, and the scores themselves.
#pragma once

#include <cstring>

#include "arena.h"
#include "block_attention_visible.h"
#include "dmao/philox.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kInfinity = __builtin_inff();

// --- Rows of tensors

inline bool lives(const BlockAttention& a, std::int64_t head) {
    return a.head_mask == nullptr || a.head_mask[head];
}

template <class T>
const T* element(const AttentionRows& rows, std::int64_t row, std::int64_t head) {
    return static_cast<const T*>(rows.data) + row * rows.row_stride + head * rows.head_stride;
}

template <class T>
Selection<T> rows_from(const AttentionRows& rows, std::int64_t row, std::int64_t head) {
    return {element<T>(rows, row, head), rows.row_stride, nullptr, nullptr};
}

// locality: of __builtin_prefetch; 3 brings the row into L1, 2 into L2.
template <int locality, class T>
void prefetch_row(const T* row, std::int64_t width) {
    const char* first = reinterpret_cast<const char*>(row);
    const std::int64_t bytes = width * static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(first + i, 0, locality);
}

// Rows of one head lie far apart, each on a page of its own, where the hardware does not look
// ahead.
template <class T>
void prefetch_rows(const Selection<T>& rows, std::int64_t first, std::int64_t end,
                   std::int64_t width) {
    for (std::int64_t i = first; i < end; ++i) {
        const std::int64_t place = rows.rows == nullptr ? i : rows.rows[i];
        prefetch_row<3>(rows.data + place * rows.stride, width);
    }
}
constexpr std::int64_t kAhead = 8;  // rows

// The utterance and head that a worker goes on with. Memory answers too late for what only moves
// rows, so these are asked for while there is something to compute; where that is much
// (Visible::sees_little), they would only be in its way.
struct Upcoming {
    std::int64_t row = 0, count = 0, head = 0;

    // Row i of each of the tensors.
    template <class T, class... Tensors>
    void prefetch(std::int64_t i, std::int64_t width, const Tensors&... tensors) const {
        if (i < count) (prefetch_row<2>(element<T>(tensors, row + i, head), width), ...);
    }
};

// out[i, :] = (row i + bias) * factor; bias may be null. `packed`, if not null, gets the same as a
// packed operand of `count` rows.
template <class T>
void load_rows(const Selection<T>& rows, std::int64_t count, std::int64_t width, const T* bias,
               float factor, float* out, float* packed) {
    prefetch_rows(rows, 0, smaller(kAhead, count), width);
    for (std::int64_t i = 0; i < count; ++i) {
        prefetch_rows(rows, i + kAhead, smaller(i + kAhead + 1, count), width);
        const T* row = rows.data + i * rows.stride;
        for (std::int64_t d = 0; d < width; d += Vec::width) {
            Vec x = load_some(row + d, width - d);
            if (bias != nullptr) x = x + load_some(bias + d, width - d);
            x = x * Vec(factor);
            store_some(out + i * width + d, x, width - d);
            if (packed == nullptr) continue;
            const std::int64_t panel = d / kPanel * kPanel;
            store(packed + panel * count + i * panel_columns(width, panel) + d - panel, x);
        }
    }
}

// target[i, :] = values[i, :] * factor for rows of a [rows, heads, width] tensor.
template <class T>
void store_rows(T* target, std::int64_t stride, const float* values, std::int64_t count,
                std::int64_t width, float factor) {
    for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t d = 0; d < width; d += Vec::width) {
            const Vec x = load_some(values + i * width + d, width - d);
            store_some(target + i * stride + d, x * Vec(factor), width - d);
        }
    }
}

inline void add_to(float* sums, const float* values, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        const std::int64_t n = count - i;
        store_some(sums + i, load_some(sums + i, n) + load_some(values + i, n), n);
    }
}

// sums[:] += the sum of the rows, which is formed apart: it rounds less.
inline void add_rows(float* sums, const float* rows, std::int64_t count, std::int64_t width) {
    for (std::int64_t d = 0; d < width; d += Vec::width) {
        const std::int64_t n = width - d;
        Vec sum(0.0f);
        for (std::int64_t i = 0; i < count; ++i) sum = sum + load_some(rows + i * width + d, n);
        store_some(sums + d, load_some(sums + d, n) + sum, n);
    }
}

// All of a matrix B[depth, n], whose rows those of `matrix` are.
template <class T>
void pack_all(const Selection<T>& matrix, std::int64_t depth, std::int64_t n, float* out) {
    constexpr std::int64_t kBlock = 16;  // rows that stay in L1 from panel to panel
    prefetch_rows(matrix, 0, smaller(kBlock, depth), n);
    for (std::int64_t k = 0; k < depth; k += kBlock) {
        const std::int64_t rows = smaller(kBlock, depth - k);
        prefetch_rows(matrix, k + kBlock, smaller(k + 2 * kBlock, depth), n);
        for (std::int64_t first = 0; first < n; first += kPanel) {
            pack_panel(matrix, k, rows, first, smaller(kPanel, n - first),
                       out + first * depth + k * panel_columns(n, first));
        }
    }
}

// All of a matrix B[depth, n], whose columns the n rows of `matrix` are.
template <class T>
void pack_all_transposed(const Selection<T>& matrix, std::int64_t depth, std::int64_t n,
                         float* out) {
    prefetch_rows(matrix, 0, smaller(kPanel, n), depth);
    for (std::int64_t first = 0; first < n; first += kPanel) {
        prefetch_rows(matrix, first + kPanel, smaller(first + 2 * kPanel, n), depth);
        pack_panel_transposed(matrix, 0, depth, first, smaller(kPanel, n - first),
                              out + first * depth);
    }
}

// --- Products with a tile A[rows, columns] of which only a band is needed

constexpr std::int64_t kStrip = 24;  // rows or columns of the tile that share one range
static_assert(kStrip % kRows == 0);

constexpr float kNothing[kPanel] = {};  // what a product starts from that does not add to a tile

// A += (or, from kNothing, =) X Y with X [rows, depth] and Y [depth, columns], of which the columns
// from `first` on, a multiple of kPanel, are meant. What is outside of the band may or may not be
// computed.
inline void multiply_into_band(const Band& band, std::int64_t columns, std::int64_t depth,
                               const float* x, const float* y, std::int64_t first, float* a,
                               std::int64_t stride, const float* start) {
    for (std::int64_t column = 0; column < columns; column += kPanel) {
        const std::int64_t n = smaller(kPanel, columns - column);
        const Range rows = band.rows_for({column, column + n});
        multiply<Order::row>(rows.count(), n, depth, x + rows.begin * depth, depth,
                             y + (first + column) * depth, a + rows.begin * stride + column, stride,
                             start);
    }
}

// C[rows, width] += A Y, with Y[columns, width] = the rows from `first` on of `stored` packed ones.
inline void multiply_band(const Band& band, const float* a, std::int64_t stride, const float* y,
                          std::int64_t first, std::int64_t stored, std::int64_t width, float* c) {
    for (std::int64_t row = 0; row < band.rows; row += kStrip) {
        const std::int64_t count = smaller(kStrip, band.rows - row);
        const Range columns = band.columns_for({row, row + count});
        if (columns.empty()) continue;
        multiply_rows<Order::row>(count, width, columns.count(), a + row * stride + columns.begin,
                                  stride, y, first + columns.begin, stored, c + row * width, width);
    }
}

// C[first + column, :] += A^T Y with Y [rows, width], packed; C has rows of `width`.
inline void multiply_band_transposed(const Band& band, Range columns, const float* a,
                                     std::int64_t stride, const float* y, std::int64_t width,
                                     std::int64_t first, float* c) {
    for (std::int64_t column = columns.begin; column < columns.end; column += kStrip) {
        const std::int64_t count = smaller(kStrip, columns.end - column);
        const Range rows = band.rows_for({column, column + count});
        if (rows.empty()) continue;
        multiply_rows<Order::column>(count, width, rows.count(), a + rows.begin * stride + column,
                                     stride, y, rows.begin, band.rows, c + (first + column) * width,
                                     width);
    }
}

// --- Relative positions

// rel_pos by distance j - i instead of by clamped index, packed for both kinds of product, per
// head. All heads and utterances share it.
struct Positions {
    bool present;
    std::int64_t first, count;  // distances [first, first + count); whole panels
    std::int64_t width;
    std::int32_t* rows;                  // [count] the row of rel_pos
    float *by_column, *by_row;           // [heads][...]; by_row: only for the gradients
    std::int64_t column_size, row_size;  // floats per head

    Positions(Arena& arena, const Visible& visible, bool gradients) {
        const BlockAttention& a = visible.a;
        present = a.rel_pos.data != nullptr;
        const Range seen = visible.distances(a.longest);
        // A whole tile's scores then begin at a panel (see Piece).
        first = seen.begin - (((seen.begin - 1) % kPanel + kPanel) % kPanel);
        count = present ? round_up(larger(seen.end - first, 1), kPanel) : 0;
        width = a.width;
        rows = reinterpret_cast<std::int32_t*>(arena.take(count));
        column_size = count * width;
        row_size = gradients ? count * padded_columns(width) : 0;
        by_column = arena.take(a.heads * column_size);
        by_row = arena.take(a.heads * row_size);
    }

    std::int32_t row_of(const BlockAttention& a, std::int64_t distance) const {
        return static_cast<std::int32_t>(smaller(larger(a.reach + distance, 0), 2 * a.reach));
    }

    template <class T>
    void fill(const BlockAttention& a, const ParallelFor& parallel) const {
        if (!present) return;
        for (std::int64_t i = 0; i < count; ++i) rows[i] = row_of(a, first + i);
        parallel(a.heads, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t head = begin; head < end; ++head) {
                if (!lives(a, head)) continue;
                Selection<T> matrix = rows_from<T>(a.rel_pos, 0, head);
                matrix.rows = rows;
                pack_all_transposed(matrix, width, count, by_column + head * column_size);
                if (row_size > 0) pack_all(matrix, count, width, by_row + head * row_size);
            }
        });
    }
};

// --- A piece of scores

// A[rows, columns] = 0
inline void clear(float* a, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t i = 0; i < rows; ++i) std::memset(a + i * stride, 0, columns * sizeof(float));
}

// row[0, count) = 0 outside of [live.begin, live.end); all are whole vectors.
inline void clear_outside(float* row, Range live, std::int64_t count) {
    if (live.empty()) live = {count, count};
    for (std::int64_t j = 0; j < live.begin; j += Vec::width) store(row + j, Vec(0.0f));
    for (std::int64_t j = live.end; j < count; j += Vec::width) store(row + j, Vec(0.0f));
}

// Where a piece of scores is computed: [rows, keys] with a stride. With relative positions it lies
// inside a window [rows, distances] that has a stride greater by one: row i of the window begins at
// the distance of the tile's last query, so that going down a row shifts it by one against the keys
//
//     scores[i, j] = window[i, shift + rows - 1 - i + j].
//
// The product with the positions fills the window, the one with the keys adds to it, and in the
// backward pass the window of the scores' gradients is the operand of the positions' gradients.
struct PieceBuffer {
    std::int64_t stride, size;
    float* memory;
    Band band, window_band;

    PieceBuffer(Arena& arena, const Visible& visible) {
        const auto band_of = [&] {
            float* low = arena.take(visible.tile_rows);
            float* high = arena.take(visible.tile_rows);
            return Band{0, reinterpret_cast<std::int32_t*>(low),
                        reinterpret_cast<std::int32_t*>(high)};
        };
        stride = round_up(visible.piece_keys + visible.tile_rows + kPanel, kUnit);
        size = (visible.tile_rows + 1) * (stride + 1);
        memory = arena.take(size);
        band = band_of();
        window_band = band_of();
    }
};

// One piece: its geometry and where its numbers are.
struct Piece {
    Range keys;
    std::int64_t rows, stride;
    Band band;
    float* scores;
    // With relative positions:
    Band window_band;
    float* window;
    std::int64_t window_stride, window_columns;
    std::int64_t first;  // of the positions, where the window begins

    Piece(const Visible& visible, const Positions& positions, PieceBuffer& buffer, const Tile& tile,
          Range piece)
        : keys(piece), rows(tile.queries.count()), stride(buffer.stride) {
        band = {rows, buffer.band.low, buffer.band.high};
        visible.band(tile, piece, band);
        const std::int64_t place =
            keys.begin - (tile.queries.end - 1) - positions.first;  // of the window's distances
        const std::int64_t shift = (place % kPanel + kPanel) % kPanel;
        first = place - shift;
        window_stride = stride + 1;
        // Whole panels, as the positions are packed.
        window_columns = round_up(shift + rows - 1 + keys.count(), kPanel);
        // Aligns the scores.
        scores = buffer.memory + round_up(shift + rows - 1, 16);
        window = scores - (shift + rows - 1);
        window_band = {rows, buffer.window_band.low, buffer.window_band.high};
        for (std::int64_t row = 0; row < rows; ++row) {
            const std::int64_t skew = shift + rows - 1 - row;
            window_band.set(row, {skew + band.low[row], skew + band.high[row]});
        }
    }

    std::int64_t padded_keys() const { return round_up(keys.count(), Vec::width); }

    // Makes the window zero where it is not scores.
    void clear_around_scores() const {
        std::memset(window, 0, (scores - window) * sizeof(float));
        clear(scores + padded_keys(), stride, rows, stride - padded_keys());
    }

    // Whole vectors of row `row` that hold all its visible keys.
    Range vectors(std::int64_t row) const {
        return {band.low[row] / Vec::width * Vec::width, round_up(band.high[row], Vec::width)};
    }
};

// Scores in units of log 2, of content queries and position queries [rows, width] that the scale
// is in already. Rows are valid within piece.vectors(row), -infinity where not visible.
inline void compute_scores(const Visible& visible, const Positions& positions, const Tile& tile,
                           const Piece& piece, std::int64_t head, const float* content,
                           const float* position, const float* keys, std::int64_t first_key) {
    const std::int64_t width = visible.a.width;
    if (positions.present) {
        multiply_into_band(piece.window_band, piece.window_columns, width, position,
                           positions.by_column + head * positions.column_size, piece.first,
                           piece.window, piece.window_stride, kNothing);
    }
    multiply_into_band(piece.band, piece.keys.count(), width, content, keys,
                       piece.keys.begin - first_key, piece.scores, piece.stride,
                       positions.present ? nullptr : kNothing);
    for (std::int64_t row = 0; row < piece.rows; ++row) {
        float* scores = piece.scores + row * piece.stride;
        const Range vectors = piece.vectors(row);
        for (std::int64_t j = vectors.begin; j < piece.band.low[row]; ++j) scores[j] = -kInfinity;
        for (std::int64_t j = piece.band.high[row]; j < vectors.end; ++j) scores[j] = -kInfinity;
    }
    if (visible.a.row_offsets == nullptr) return;
    // Where units are wider than blocks, dead blocks lie between live ones.
    std::int64_t key = piece.keys.begin;
    const auto hide = [&](std::int64_t end) {
        for (; key < smaller(end, piece.keys.end); ++key) {
            for (std::int64_t row = 0; row < piece.rows; ++row) {
                piece.scores[row * piece.stride + key - piece.keys.begin] = -kInfinity;
            }
        }
    };
    visible.each_block(tile, [&](Range block) {
        hide(block.begin);
        key = larger(key, block.end);
    });
    hide(piece.keys.end);
}

// --- Dividing the work

// body(worker, units) with neighbouring units of [0, count) for each worker, whose costs add up to
// about the same. What costs nothing may be left out.
template <class Cost, class Body>
void share_out(std::int64_t count, std::int64_t workers, const ParallelFor& parallel,
               const Cost& cost, const Body& body) {
    std::int64_t total = 0;
    for (std::int64_t unit = 0; unit < count; ++unit) total += cost(unit);
    parallel(workers, 1, [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t from = total * begin / workers, to = total * end / workers;
        Range units{0, 0};
        for (std::int64_t done = 0; units.end < count && done < to; ++units.end) {
            if (done < from) units.begin = units.end + 1;
            done += cost(units.end);
        }
        body(begin, units);
    });
}

// body(row, count, heads) for the rows that lie in no utterance, and for those of dead heads.
template <class Body>
void each_unused(const BlockAttention& a, const ParallelFor& parallel, const Body& body) {
    parallel(a.utterances + 1, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t u = begin; u < end; ++u) {
            const std::int64_t gap = u == 0 ? 0 : a.spans[2 * u - 2] + a.spans[2 * u - 1];
            const std::int64_t row = u == a.utterances ? a.rows : a.spans[2 * u];
            body(gap, row - gap, Range{0, a.heads});
            if (u == a.utterances) continue;
            for (std::int64_t head = 0; head < a.heads; ++head) {
                if (!lives(a, head)) body(row, a.spans[2 * u + 1], Range{head, head + 1});
            }
        }
    });
}

// Rows of one head of a contiguous [rows, heads, width] tensor.
template <class T>
T* head_rows(void* tensor, const BlockAttention& a, std::int64_t row, std::int64_t head) {
    return static_cast<T*>(tensor) + (row * a.heads + head) * a.width;
}

template <class T>
void clear_rows(void* tensor, const BlockAttention& a, std::int64_t row, std::int64_t count,
                Range heads) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::memset(head_rows<T>(tensor, a, row + i, heads.begin), 0,
                    heads.count() * a.width * sizeof(T));
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
