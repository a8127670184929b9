// The forward pass of block_attention.
#pragma once

#include "block_attention_tile.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// The tiles of queries of all utterances and live heads, with what they cost. Utterances come
// first, because their heads lie beside each other in memory.
struct TileList {
    std::int64_t count;
    std::int32_t *utterance, *head, *index, *cost;

    TileList(Arena& arena, const Visible& visible) : count(0) {
        for (std::int64_t u = 0; u < visible.a.utterances; ++u) {
            count += visible.tiles(u) * visible.a.heads;
        }
        const auto take = [&] { return reinterpret_cast<std::int32_t*>(arena.take(count)); };
        utterance = take();
        head = take();
        index = take();
        cost = take();
    }

    void fill(const Visible& visible) {
        count = 0;
        for (std::int64_t u = 0; u < visible.a.utterances; ++u) {
            for (std::int64_t h = 0; h < visible.a.heads; ++h) {
                if (!lives(visible.a, h)) continue;
                for (std::int64_t t = 0; t < visible.tiles(u); ++t, ++count) {
                    const Tile tile = visible.tile(u, t);
                    utterance[count] = static_cast<std::int32_t>(u);
                    head[count] = static_cast<std::int32_t>(h);
                    index[count] = static_cast<std::int32_t>(t);
                    cost[count] = static_cast<std::int32_t>(visible.cost(tile, {0, tile.length}));
                }
            }
        }
    }

    // What comes after the utterance and head of tile i, in front of tile `end`.
    Upcoming after(const Visible& visible, std::int64_t i, std::int64_t end) const {
        const std::int64_t next = i + visible.tiles(utterance[i]) - index[i];
        if (next >= end || !visible.sees_little(visible.length(utterance[i]))) return {};
        const std::int64_t u = utterance[next];
        return {visible.first_row(u), visible.length(u), head[next]};
    }
};

// What one worker needs.
struct ForwardBuffers {
    float *keys, *values;       // packed, of one utterance and head
    float *content, *position;  // [tile, width] queries with their biases, scaled
    float* sums;                // [tile, width] of weighted values
    float *top, *total;         // [tile] largest score so far, and the sum of the exponentials
    float* factors;             // of dropout, for one row of a piece; of rows
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

// The largest score of one row of a piece, or `top`.
inline float largest_score(const float* scores, Range live, float top) {
    Vec result(top);
    for (std::int64_t j = live.begin; j < live.end; j += Vec::width) {
        result = max(load(scores + j), result);
    }
    return largest(result);
}

// One row of a piece: scores become weights, up to the sum over all keys; returns the sum of those
// here, before dropout.
inline float weigh_row(float* scores, Range live, std::int64_t padded, const float* factors,
                       float top) {
    Vec result(0.0f);
    for (std::int64_t j = live.begin; j < live.end; j += Vec::width) {
        Vec weight = exp2(load(scores + j) - Vec(top));
        result = result + weight;
        if (factors != nullptr) weight = weight * load(factors + j);
        store(scores + j, weight);
    }
    clear_outside(scores, live, padded);
    return sum(result);
}

// Takes the scores of a piece into account: new largest scores, and what was summed up so far is
// brought down to them.
inline void raise_tops(const Piece& piece, std::int64_t width, const ForwardBuffers& buffers) {
    float* factors = buffers.factors;  // of the rows
    for (std::int64_t i = 0; i < piece.rows; ++i) {
        const float top =
            largest_score(piece.scores + i * piece.stride, piece.vectors(i), buffers.top[i]);
        // Where nothing was visible so far there is nothing to bring down, and -infinity is no
        // base.
        factors[i] = top == -kInfinity ? 0.0f : buffers.top[i] - top;
        buffers.top[i] = top;
    }
    for (std::int64_t i = 0; i < piece.rows; i += Vec::width) {
        store(factors + i, exp2(load(factors + i)));
    }
    for (std::int64_t i = 0; i < piece.rows; ++i) {
        if (factors[i] == 1.0f) continue;
        buffers.total[i] *= factors[i];
        float* sums = buffers.sums + i * width;
        for (std::int64_t d = 0; d < width; d += Vec::width) {
            store_some(sums + d, load_some(sums + d, width - d) * Vec(factors[i]), width - d);
        }
    }
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
// What is packed may be null.
template <class T>
void load_queries(const BlockAttention& a, const Tile& tile, std::int64_t head, std::int64_t row,
                  float* content, float* position, float* content_packed, float* position_packed) {
    const float factor = static_cast<float>(a.scale) * kLog2E;
    const Selection<T> queries = rows_from<T>(a.q, row, head);
    const auto bias = [&](const void* data) {
        return data == nullptr ? nullptr : static_cast<const T*>(data) + head * a.width;
    };
    const std::int64_t rows = tile.queries.count();
    load_rows(queries, rows, a.width, bias(a.content_bias), factor, content, content_packed);
    if (a.rel_pos.data != nullptr) {
        load_rows(queries, rows, a.width, bias(a.position_bias), factor, position, position_packed);
    }
}

template <class T>
void forward_tile(const BlockAttentionForward& problem, const ForwardScratch& scratch,
                  ForwardBuffers& buffers, const Tile& tile, std::int64_t head,
                  const Upcoming& next) {
    const BlockAttention& a = problem.attention;
    const Visible& visible = scratch.visible;
    const Dropout dropout(a.p, a.seed);
    const std::int64_t rows = tile.queries.count(), width = a.width;
    const std::int64_t first_row = visible.first_row(tile.utterance) + tile.queries.begin;
    load_queries<T>(a, tile, head, first_row, buffers.content, buffers.position, nullptr, nullptr);
    std::memset(buffers.sums, 0, rows * width * sizeof(float));
    for (std::int64_t i = 0; i < rows; ++i) {
        buffers.top[i] = -kInfinity;
        buffers.total[i] = 0.0f;
    }
    visible.each_piece(tile, {0, tile.length}, [&](Range keys) {
        const Piece piece(visible, scratch.positions, buffers.piece, tile, keys);
        compute_scores(visible, scratch.positions, tile, piece, head, buffers.content,
                       buffers.position, buffers.keys, 0);
        raise_tops(piece, width, buffers);
        for (std::int64_t i = 0; i < rows; ++i) {
            next.prefetch<T>(tile.queries.begin + i, width, a.q, a.k, a.v);
            const float* factors =
                dropout.active() ? dropout_factors(dropout, tile.utterance, head,
                                                   tile.queries.begin + i, keys, buffers.factors)
                                 : nullptr;
            const float top = buffers.top[i] == -kInfinity ? 0.0f : buffers.top[i];
            buffers.total[i] += weigh_row(piece.scores + i * piece.stride, piece.vectors(i),
                                          piece.padded_keys(), factors, top);
        }
        multiply_band(piece.band, piece.scores, piece.stride, buffers.values, keys.begin,
                      tile.length, width, buffers.sums);
    });
    for (std::int64_t i = 0; i < rows; ++i) {
        const float total = buffers.total[i];
        problem.lse[head * a.rows + first_row + i] =
            total == 0.0f ? -kInfinity : buffers.top[i] + __builtin_log2f(total);
        store_rows(head_rows<T>(problem.out, a, first_row + i, head), 0, buffers.sums + i * width,
                   1, width, total == 0.0f ? 0.0f : 1.0f / total);
    }
}

template <class T>
void forward(const BlockAttentionForward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const BlockAttention& a = problem.attention;
    ForwardScratch scratch(a, workspace);
    scratch.positions.fill<T>(a, parallel);
    scratch.tiles.fill(scratch.visible);
    each_unused(a, parallel, [&](std::int64_t row, std::int64_t count, Range heads) {
        clear_rows<T>(problem.out, a, row, count, heads);
        for (std::int64_t head = heads.begin; head < heads.end; ++head) {
            std::memset(problem.lse + head * a.rows + row, 0, count * sizeof(float));
        }
    });
    const TileList& tiles = scratch.tiles;
    share_out(
        tiles.count, workspace.workers, parallel,
        [&](std::int64_t i) -> std::int64_t { return tiles.cost[i]; },
        [&](std::int64_t worker, Range units) {
            Arena own(scratch.buffers + worker * scratch.buffer_size);
            ForwardBuffers buffers(own, scratch.visible);
            std::int64_t last_head = -1, last_utterance = -1;
            for (std::int64_t i = units.begin; i < units.end; ++i) {
                const std::int64_t head = tiles.head[i];
                const Tile tile = scratch.visible.tile(tiles.utterance[i], tiles.index[i]);
                if (head != last_head || tile.utterance != last_utterance) {
                    const std::int64_t row = scratch.visible.first_row(tile.utterance);
                    pack_all_transposed(rows_from<T>(a.k, row, head), a.width, tile.length,
                                        buffers.keys);
                    pack_all(rows_from<T>(a.v, row, head), tile.length, a.width, buffers.values);
                    last_head = head;
                    last_utterance = tile.utterance;
                }
                forward_tile<T>(problem, scratch, buffers, tile, head,
                                tiles.after(scratch.visible, i, units.end));
            }
        });
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
