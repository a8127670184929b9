// What a tile of queries sees: which pieces of the key axis are computed at all, and within them
// the columns of each row.
#pragma once

#include "dmao/block_attention.h"
#include "operands.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

struct Range {
    std::int64_t begin, end;
    std::int64_t count() const { return end - begin; }
    bool empty() const { return begin >= end; }
};

inline Range intersection(Range a, Range b) {
    return {larger(a.begin, b.begin), smaller(a.end, b.end)};
}

constexpr std::int64_t kTileRows = 64;  // queries of a tile, at most
// Pieces of the key axis begin and (except at its end) end at multiples of this, because packed
// panels cannot be cut.
constexpr std::int64_t kUnit = round_up(16, kPanel);
static_assert(kUnit % kPanel == 0);

// The columns that each row of a tile needs, as a product sees them: row i those in
// [low[i], high[i]).
struct Band {
    std::int64_t rows;
    std::int32_t *low, *high;

    void set(std::int64_t row, Range columns) const {
        low[row] = static_cast<std::int32_t>(columns.begin);
        high[row] = static_cast<std::int32_t>(columns.end);
    }

    // From the first to the last row that needs one of these columns.
    Range rows_for(Range columns) const {
        const auto needs = [&](std::int64_t row) {
            return low[row] < high[row] && low[row] < columns.end && high[row] > columns.begin;
        };
        Range result{0, rows};
        while (result.begin < result.end && !needs(result.begin)) ++result.begin;
        while (result.begin < result.end && !needs(result.end - 1)) --result.end;
        return result;
    }

    // The smallest range with the columns of all these rows.
    Range columns_for(Range some_rows) const {
        Range result{1 << 30, 0};
        for (std::int64_t row = some_rows.begin; row < some_rows.end; ++row) {
            if (low[row] >= high[row]) continue;
            result.begin = smaller(result.begin, low[row]);
            result.end = larger(result.end, high[row]);
        }
        return result.empty() ? Range{0, 0} : result;
    }
};

// A tile of queries: positions in their utterance.
struct Tile {
    std::int64_t utterance, length;  // frames of the utterance
    Range queries;
};

// The keys that each query sees, and how queries and keys are cut.
struct Visible {
    const BlockAttention& a;
    std::int64_t tile_rows;   // a divisor of the mask's block, so that a tile lies in one row of it
    std::int64_t piece_keys;  // of a tile of scores, at most

    explicit Visible(const BlockAttention& attention) : a(attention) {
        tile_rows = kTileRows;
        if (a.row_offsets != nullptr) {
            tile_rows = a.block;
            for (int parts = 2; tile_rows > kTileRows; ++parts) {
                if (a.block % parts == 0) tile_rows = a.block / parts;
            }
        }
        // Scores and their keys and values stay in L2 together.
        const std::int64_t wanted = 256 * 64 / larger(a.width, 1);
        piece_keys =
            smaller(larger(wanted / kUnit * kUnit, round_up(64, kUnit)), round_up(256, kUnit));
    }

    std::int64_t length(std::int64_t utterance) const { return a.spans[2 * utterance + 1]; }
    std::int64_t first_row(std::int64_t utterance) const { return a.spans[2 * utterance]; }
    std::int64_t tiles(std::int64_t utterance) const {
        return divide_up(length(utterance), tile_rows);
    }
    Tile tile(std::int64_t utterance, std::int64_t index) const {
        const std::int64_t frames = length(utterance), first = index * tile_rows;
        return {utterance, frames, {first, smaller(first + tile_rows, frames)}};
    }

    // By window, chunk and length alone; both ends ascend with the query.
    Range keys(std::int64_t query, std::int64_t frames) const {
        Range result{0, frames};
        if (a.left >= 0) result.begin = larger(result.begin, query - a.left);
        if (a.right >= 0) result.end = smaller(result.end, query + a.right + 1);
        if (a.chunk > 0) {
            const std::int64_t chunk = query / a.chunk;
            result.end = smaller(result.end, (chunk + 1) * a.chunk);
            if (a.left_chunks >= 0) {
                result.begin = larger(result.begin, (chunk - a.left_chunks) * a.chunk);
            }
        }
        return result;
    }

    // The least and greatest j - i that can be seen in an utterance of `frames`, or a little more.
    Range distances(std::int64_t frames) const {
        Range result{1 - frames, frames};
        if (a.left >= 0) result.begin = larger(result.begin, -a.left);
        if (a.right >= 0) result.end = smaller(result.end, a.right + 1);
        if (a.chunk > 0) {
            result.end = smaller(result.end, a.chunk);
            if (a.left_chunks >= 0) {
                result.begin = larger(result.begin, -(a.left_chunks + 1) * a.chunk);
            }
        }
        return result;
    }

    // Whether a tile in an utterance of `frames` sees one piece at most, so that moving rows takes
    // a good part of the time.
    bool sees_little(std::int64_t frames) const {
        return smaller(frames, distances(frames).count() + tile_rows) <= piece_keys;
    }

    // body(keys) for all live blocks of the mask in the tile's row of it, ascending.
    template <class Body>
    void each_block(const Tile& tile, const Body& body) const {
        if (a.row_offsets == nullptr) return body(Range{0, tile.length});
        const std::int64_t row = tile.queries.begin / a.block;
        for (std::int64_t i = a.row_offsets[row]; i < a.row_offsets[row + 1]; ++i) {
            body(Range{a.column_ids[i] * a.block, (a.column_ids[i] + 1) * a.block});
        }
    }

    // body(keys) for the pieces to compute of the tile's scores, ascending and within `part`, which
    // begins and ends like a piece.
    template <class Body>
    void each_piece(const Tile& tile, Range part, const Body& body) const {
        const Range hull = intersection(part, {keys(tile.queries.begin, tile.length).begin,
                                               keys(tile.queries.end - 1, tile.length).end});
        Range run{0, 0};
        const auto cut = [&] {
            if (run.empty()) return;
            const std::int64_t pieces = divide_up(run.count(), piece_keys);
            const std::int64_t step = round_up(divide_up(run.count(), pieces), kUnit);
            for (std::int64_t key = run.begin; key < run.end; key += step) {
                body(Range{key, smaller(key + step, run.end)});
            }
        };
        each_block(tile, [&](Range block) {
            block = intersection(block, hull);
            if (block.empty()) return;
            const std::int64_t begin = block.begin / kUnit * kUnit;
            const std::int64_t end = smaller(round_up(block.end, kUnit), part.end);
            if (begin > run.end) {
                cut();
                run.begin = begin;
            }
            run.end = end;
        });
        cut();
    }

    // The columns of each row of a piece.
    void band(const Tile& tile, Range piece, const Band& result) const {
        for (std::int64_t row = 0; row < result.rows; ++row) {
            const Range seen = intersection(keys(tile.queries.begin + row, tile.length), piece);
            result.set(row, seen.empty() ? Range{0, 0}
                                         : Range{seen.begin - piece.begin, seen.end - piece.begin});
        }
    }

    // A measure of the time that a tile takes.
    std::int64_t cost(const Tile& tile, Range part) const {
        std::int64_t result = 32;
        each_piece(tile, part, [&](Range piece) {
            result += (piece.count() + 32) * tile.queries.count() / tile_rows;
        });
        return result;
    }
};

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
