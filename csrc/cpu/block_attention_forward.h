// The forward pass of block_attention.
#pragma once

#include "block_attention_tile.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// Tiles of queries of all utterances, with what they cost.
struct TileList {
    std::int64_t count;
    std::int32_t *utterance, *index, *cost;

    TileList(Arena& arena, const Visible& visible) : count(0) {
        for (std::int64_t u = 0; u < visible.a.utterances; ++u) count += visible.tiles(u);
        utterance = reinterpret_cast<std::int32_t*>(arena.take(count));
        index = reinterpret_cast<std::int32_t*>(arena.take(count));
        cost = reinterpret_cast<std::int32_t*>(arena.take(count));
    }

    void fill(const Visible& visible) const {
        std::int64_t i = 0;
        for (std::int64_t u = 0; u < visible.a.utterances; ++u) {
            for (std::int64_t t = 0; t < visible.tiles(u); ++t, ++i) {
                const Tile tile = visible.tile(u, t);
                utterance[i] = static_cast<std::int32_t>(u);
                index[i] = static_cast<std::int32_t>(t);
                cost[i] = static_cast<std::int32_t>(visible.cost(tile, {0, tile.length}));
            }
        }
    }
};

// What one worker needs. `packed` names the utterance and head whose keys and values are here.
struct ForwardBuffers {
    float *keys, *values;       // packed, of one utterance and head
    float *content, *position;  // [tile, width] queries with their biases, scaled
    float* sums;                // [tile, width] of weighted values
    float *top, *total;         // [tile] largest score so far, and the sum of the exponentials
    float* factors;             // of dropout, one row of a piece
    PieceBuffer piece;

    ForwardBuffers(Arena& arena, const Visible& visible)
        : keys(arena.take(round_up(visible.a.longest, kPanel) * visible.a.width)),
          values(arena.take(visible.a.longest * padded_columns(visible.a.width))),
          content(arena.take(visible.tile_rows * visible.a.width)),
          position(arena.take(visible.tile_rows * visible.a.width)),
          sums(arena.take(visible.tile_rows * visible.a.width)),
          top(arena.take(visible.tile_rows)),
          total(arena.take(visible.tile_rows)),
          factors(arena.take(visible.piece_keys + 2 * kPhiloxUnits)),
          piece(arena, visible) {}
};

struct ForwardScratch {
    Arena arena;
    Visible visible;
    Positions positions;
    TileList tiles;
    std::int64_t buffer_size;
    float* buffers;

    ForwardScratch(const BlockAttention& a, const Workspace& workspace)
        : arena(workspace.scratch),
          visible(a),
          positions(arena, visible, false),
          tiles(arena, visible) {
        Arena counter(nullptr);
        ForwardBuffers(counter, visible);
        buffer_size = counter.used();
        buffers = arena.take(buffer_size * workspace.workers);
    }
};

// One row of a piece: scores become weights, up to the sum over all keys. `row_sums` holds what
// earlier pieces gave, [width].
inline void weigh_row(float* scores, Range live, std::int64_t padded, const float* factors,
                      float* top, float* total, float* row_sums, std::int64_t width) {
    Vec highest(*top);
    for (std::int64_t j = live.begin; j < live.end; j += Vec::width) {
        highest = max(load(scores + j), highest);
    }
    const float new_top = largest(highest);
    // Where nothing was visible so far every exponent stays -infinity.
    const Vec base(new_top == -kInfinity ? 0.0f : new_top);
    Vec weights(0.0f);
    for (std::int64_t j = live.begin; j < live.end; j += Vec::width) {
        Vec weight = exp2(load(scores + j) - base);
        weights = weights + weight;
        if (factors != nullptr) weight = weight * load(factors + j);
        store(scores + j, weight);
    }
    clear_outside(scores, live, padded);
    const float earlier = new_top == *top ? 1.0f : __builtin_exp2f(*top - new_top);
    for (std::int64_t d = 0; earlier != 1.0f && d < width; d += Vec::width) {
        store_some(row_sums + d, load_some(row_sums + d, width - d) * Vec(earlier), width - d);
    }
    *total = *total * earlier + sum(weights);
    *top = new_top;
}

// Dropout factors of one query for the keys of a piece; returns where the first one is.
inline const float* dropout_factors(const Dropout& dropout, std::int64_t utterance,
                                    std::int64_t head, std::int64_t query, Range keys,
                                    float* buffer) {
    const std::int64_t first = keys.begin / kPhiloxUnits;
    for (std::int64_t group = first; group * kPhiloxUnits < keys.end; ++group) {
        dropout.factors(static_cast<std::uint32_t>(query), static_cast<std::uint32_t>(group),
                        buffer + (group - first) * kPhiloxUnits,
                        static_cast<std::uint32_t>(utterance), static_cast<std::uint32_t>(head));
    }
    return buffer + keys.begin % kPhiloxUnits;
}

// Queries with their biases, times the scale, in units of log 2; both are the same without biases.
template <class T>
void load_queries(const BlockAttention& a, const Tile& tile, std::int64_t head, std::int64_t row,
                  float* content, float* position) {
    const float factor = static_cast<float>(a.scale) * kLog2E;
    const Selection<T> queries = rows_from<T>(a.q, row, head);
    const auto bias = [&](const void* data) {
        return data == nullptr ? nullptr : static_cast<const T*>(data) + head * a.width;
    };
    const std::int64_t rows = tile.queries.count();
    load_rows(queries, rows, a.width, bias(a.content_bias), factor, content);
    if (a.rel_pos.data != nullptr) {
        load_rows(queries, rows, a.width, bias(a.position_bias), factor, position);
    }
}

template <class T>
void forward_tile(const BlockAttentionForward& problem, const ForwardScratch& scratch,
                  ForwardBuffers& buffers, const Tile& tile, std::int64_t head) {
    const BlockAttention& a = problem.attention;
    const Visible& visible = scratch.visible;
    const Dropout dropout(a.p, a.seed);
    const std::int64_t rows = tile.queries.count(), width = a.width;
    const std::int64_t first_row = visible.first_row(tile.utterance) + tile.queries.begin;
    load_queries<T>(a, tile, head, first_row, buffers.content, buffers.position);
    std::memset(buffers.sums, 0, rows * width * sizeof(float));
    for (std::int64_t i = 0; i < rows; ++i) {
        buffers.top[i] = -kInfinity;
        buffers.total[i] = 0.0f;
    }
    visible.each_piece(tile, {0, tile.length}, [&](Range keys) {
        const Piece piece(visible, scratch.positions, buffers.piece, tile, keys);
        compute_scores(visible, scratch.positions, tile, piece, head, buffers.content,
                       buffers.position, buffers.keys, 0);
        for (std::int64_t i = 0; i < rows; ++i) {
            const float* factors =
                dropout.active() ? dropout_factors(dropout, tile.utterance, head,
                                                   tile.queries.begin + i, keys, buffers.factors)
                                 : nullptr;
            weigh_row(piece.scores + i * piece.stride, piece.vectors(i), piece.padded_keys(),
                      factors, buffers.top + i, buffers.total + i, buffers.sums + i * width,
                      width);
        }
        multiply_band(piece.band, piece.scores, piece.stride, buffers.values, keys.begin,
                      tile.length, width, buffers.sums);
    });
    for (std::int64_t i = 0; i < rows; ++i) {
        const float total = buffers.total[i];
        problem.lse[head * a.rows + first_row + i] =
            total == 0.0f ? -kInfinity : kLn2 * (buffers.top[i] + __builtin_log2f(total));
        store_rows(head_rows<T>(problem.out, a, first_row + i, head), 0, buffers.sums + i * width,
                   1, width, total == 0.0f ? 0.0f : 1.0f / total);
    }
}

template <class T>
void forward(const BlockAttentionForward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const BlockAttention& a = problem.attention;
    const ForwardScratch scratch(a, workspace);
    scratch.positions.fill<T>(a, parallel);
    scratch.tiles.fill(scratch.visible);
    each_unused(a, parallel, [&](std::int64_t row, std::int64_t head, std::int64_t count) {
        clear_rows<T>(problem.out, a, row, head, count);
        std::memset(problem.lse + head * a.rows + row, 0, count * sizeof(float));
    });
    const TileList& tiles = scratch.tiles;
    share_out(
        a.heads * tiles.count, workspace.workers, parallel,
        [&](std::int64_t unit) -> std::int64_t {
            return lives(a, unit / tiles.count) ? tiles.cost[unit % tiles.count] : 0;
        },
        [&](std::int64_t worker, Range units) {
            Arena own(scratch.buffers + worker * scratch.buffer_size);
            ForwardBuffers buffers(own, scratch.visible);
            std::int64_t last_head = -1, last_utterance = -1;
            for (std::int64_t unit = units.begin; unit < units.end; ++unit) {
                const std::int64_t head = unit / tiles.count, i = unit % tiles.count;
                if (!lives(a, head)) continue;
                const Tile tile = scratch.visible.tile(tiles.utterance[i], tiles.index[i]);
                if (head != last_head || tile.utterance != last_utterance) {
                    const std::int64_t row = scratch.visible.first_row(tile.utterance);
                    pack_all_transposed(rows_from<T>(a.k, row, head), a.width, tile.length,
                                        buffers.keys);
                    pack_all(rows_from<T>(a.v, row, head), tile.length, a.width, buffers.values);
                    last_head = head;
                    last_utterance = tile.utterance;
                }
                forward_tile<T>(problem, scratch, buffers, tile, head);
            }
        });
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
