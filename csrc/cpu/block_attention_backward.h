// The backward pass of block_attention.
#pragma once

#include "block_attention_forward.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// How the backward pass is cut, by the problem alone. The unit of work of one head is an item: an
// utterance, or one of several parts of its keys where there are few utterances and heads. Items
// are dealt to chains, each of which one worker goes through in order. The keys of an item are gone
// through in slabs, which are packed and whose gradients are summed up while they stay in cache.
struct Chains {
    std::int64_t slab_keys;  // at most
    std::int64_t parts;      // of every utterance
    std::int64_t items;      // per head
    std::int64_t count;      // per head

    explicit Chains(const Visible& visible) {
        constexpr std::int64_t kItems = 32, kChains = 64;  // about, of all heads
        const BlockAttention& a = visible.a;
        const std::int64_t whole = larger(a.utterances * a.heads, 1);
        // Where tiles see few keys, the others may wait in L3, and queries are read once.
        const bool narrow = visible.distances(a.longest).count() <= visible.piece_keys;
        slab_keys = visible.piece_keys * (narrow && whole >= kItems ? 4 : 1);
        parts = smaller(divide_up(kItems, whole), larger(divide_up(a.longest, slab_keys), 1));
        items = a.utterances * parts;
        count = parts > 1 ? items : smaller(items, divide_up(kChains, larger(a.heads, 1)));
    }

    Range items_of(std::int64_t chain) const {
        return {items * chain / count, items * (chain + 1) / count};
    }

    // Which of an utterance's slabs belong to an item.
    Range slabs_of(std::int64_t item, std::int64_t slabs) const {
        const std::int64_t part = item % parts;
        return {slabs * part / parts, slabs * (part + 1) / parts};
    }
};

// The slabs of an utterance.
struct Slabs {
    std::int64_t length, step, count;

    Slabs(const Chains& chains, std::int64_t length) : length(length) {
        const std::int64_t wanted = larger(divide_up(length, chains.slab_keys), 1);
        step = larger(round_up(divide_up(length, wanted), kUnit), kUnit);
        count = divide_up(length, step);
    }

    Range operator[](std::int64_t i) const { return {i * step, smaller((i + 1) * step, length)}; }
};

// What one worker needs.
struct BackwardBuffers {
    float *keys, *values, *key_rows;  // packed, of one slab: as columns, as columns, as rows
    float *grad_keys, *grad_values;   // [slab, width]
    float* grad_queries;              // [longest, width]
    // Of one tile [tile, width], as rows and packed:
    float *content, *position, *grad_out;
    float *content_packed, *position_packed, *grad_out_packed;
    float* part;               // [tile, width] of gradients of the queries
    float *minus_lse, *inner;  // [tile] in units of log 2; grad_out . out
    float* factors;
    PieceBuffer scores;
    float* weights;  // rows as in the piece of scores

    BackwardBuffers(Arena& arena, const Visible& visible, const Chains& chains)
        : scores(arena, visible) {
        const std::int64_t width = visible.a.width, packed_width = padded_columns(width);
        const std::int64_t slab = round_up(smaller(chains.slab_keys, visible.a.longest), kUnit),
                           rows = visible.tile_rows;
        keys = arena.take(slab * width);
        values = arena.take(slab * width);
        key_rows = arena.take(slab * packed_width);
        grad_keys = arena.take(slab * width);
        grad_values = arena.take(slab * width);
        grad_queries = arena.take(chains.parts == 1 ? visible.a.longest * width : 0);
        content = arena.take(rows * width);
        position = arena.take(rows * width);
        grad_out = arena.take(rows * width);
        content_packed = arena.take(rows * packed_width);
        position_packed = arena.take(rows * packed_width);
        grad_out_packed = arena.take(rows * packed_width);
        part = arena.take(rows * width);
        minus_lse = arena.take(rows);
        inner = arena.take(rows);
        factors = arena.take(visible.piece_keys + 2 * kPhiloxUnits);
        weights = arena.take(rows * scores.stride);
    }
};

// What each chain sums up.
struct ChainSums {
    float* positions;                     // [distances, width]
    float *content_bias, *position_bias;  // [width]
};

struct BackwardScratch {
    Arena arena;
    Visible visible;
    Positions positions;
    Chains chains;
    std::int64_t* costs;  // [chains]
    std::int64_t sums_size;
    float *sums, *grad_queries;  // [heads][chains][...], [heads][items][longest, width]
    std::int64_t buffer_size;
    float* buffers;

    BackwardScratch(const BlockAttention& a, const Workspace& workspace)
        : arena(workspace.scratch), visible(a), positions(arena, visible, true), chains(visible) {
        costs = reinterpret_cast<std::int64_t*>(arena.take(2 * chains.count));
        sums_size = round_up((positions.count + 2) * a.width, 16);
        sums = arena.take(a.heads * chains.count * sums_size);
        grad_queries =
            arena.take(chains.parts == 1 ? 0 : a.heads * chains.items * a.longest * a.width);
        Arena counter(nullptr);
        BackwardBuffers(counter, visible, chains);
        buffer_size = counter.used();
        buffers = arena.take(buffer_size * workspace.workers);
    }

    void fill_costs() const {
        for (std::int64_t chain = 0; chain < chains.count; ++chain) {
            costs[chain] = 1;
            const Range items = chains.items_of(chain);
            for (std::int64_t item = items.begin; item < items.end; ++item) {
                const std::int64_t utterance = item / chains.parts;
                const Slabs slabs(chains, visible.length(utterance));
                const Range own = chains.slabs_of(item, slabs.count);
                for (std::int64_t i = own.begin; i < own.end; ++i) {
                    for (std::int64_t t = 0; t < visible.tiles(utterance); ++t) {
                        costs[chain] += visible.cost(visible.tile(utterance, t), slabs[i]);
                    }
                }
            }
        }
    }

    // What comes after an item of a chain, if it is of the same chain or of the next head.
    Upcoming after(std::int64_t head, std::int64_t chain, std::int64_t item) const {
        if (!visible.sees_little(visible.length(item / chains.parts))) return {};
        const Range items = chains.items_of(chain);
        const bool last = ++item == items.end;
        if (last) item = items.begin;
        if (last && ++head == visible.a.heads) return {};
        const std::int64_t utterance = item / chains.parts;
        return {visible.first_row(utterance), visible.length(utterance), head};
    }

    ChainSums of_chain(std::int64_t head, std::int64_t chain) const {
        float* first = sums + (head * chains.count + chain) * sums_size;
        const std::int64_t width = visible.a.width;
        return {first + 2 * width, first, first + width};
    }

    // [longest, width], where there are several parts of an utterance.
    float* queries_of_part(std::int64_t head, std::int64_t item) const {
        return grad_queries + (head * chains.items + item) * visible.a.longest * visible.a.width;
    }
};

template <class T>
void load_tile(const BlockAttentionBackward& problem, const Visible& visible,
               const BackwardBuffers& buffers, const Tile& tile, std::int64_t head) {
    const BlockAttention& a = problem.attention;
    const std::int64_t rows = tile.queries.count(), width = a.width;
    const std::int64_t row = visible.first_row(tile.utterance) + tile.queries.begin;
    load_queries<T>(a, tile, head, row, buffers.content, buffers.position, buffers.content_packed,
                    buffers.position_packed);
    load_rows<T>(rows_from<T>(problem.grad_out, row, head), rows, width, nullptr, 1.0f,
                 buffers.grad_out, buffers.grad_out_packed);
    const Selection<T> outs = rows_from<T>(problem.out, row, head);
    for (std::int64_t i = 0; i < rows; ++i) {
        prefetch_rows(outs, i + kAhead, smaller(i + kAhead + 1, rows), width);
        const T* out = outs.data + i * outs.stride;
        const float* grad = buffers.grad_out + i * width;
        Vec products(0.0f);
        for (std::int64_t d = 0; d < width; d += Vec::width) {
            products = fma(load_some(grad + d, width - d), load_some(out + d, width - d), products);
        }
        buffers.inner[i] = sum(products);
        const float lse = problem.lse[head * a.rows + row + i];
        // Nothing was visible: all weights become zero.
        buffers.minus_lse[i] = lse == -kInfinity ? -kInfinity : -lse;
    }
}

// One row of a piece: scores become gradients of the scores, gradients of the weights become the
// weights (with dropout) themselves.
inline void differentiate_row(float* scores, float* weights, Range live, std::int64_t padded,
                              const float* factors, float minus_lse, float inner) {
    for (std::int64_t j = live.begin; j < live.end; j += Vec::width) {
        const Vec weight = exp2(load(scores + j) + Vec(minus_lse));
        Vec grad = load(weights + j), dropped = weight;
        if (factors != nullptr) {
            const Vec factor = load(factors + j);
            grad = grad * factor;
            dropped = dropped * factor;
        }
        store(scores + j, weight * (grad - Vec(inner)));
        store(weights + j, dropped);
    }
    clear_outside(scores, live, padded);
    clear_outside(weights, live, padded);
}

// C += A Y for gradients of queries; with a bias, whose gradient is the sum over the queries, by
// way of `part`.
inline void add_query_gradients(const Band& band, const float* a, std::int64_t stride,
                                const float* y, std::int64_t first, std::int64_t stored,
                                std::int64_t width, float* part, float* bias, float* c) {
    if (bias == nullptr) return multiply_band(band, a, stride, y, first, stored, width, c);
    std::memset(part, 0, band.rows * width * sizeof(float));
    multiply_band(band, a, stride, y, first, stored, width, part);
    add_rows(bias, part, band.rows, width);
    add_to(c, part, band.rows * width);
}

// One piece of one tile: adds to the gradients of its keys, values, queries and positions.
template <class T>
void backward_piece(const BlockAttentionBackward& problem, const BackwardScratch& scratch,
                    BackwardBuffers& buffers, const ChainSums& sums, const Tile& tile,
                    std::int64_t head, Range slab, Range keys, float* grad_queries,
                    const Upcoming& next) {
    const BlockAttention& a = problem.attention;
    const Visible& visible = scratch.visible;
    const Positions& positions = scratch.positions;
    const Dropout dropout(a.p, a.seed);
    const std::int64_t width = a.width, first_key = keys.begin - slab.begin;
    const Piece piece(visible, positions, buffers.scores, tile, keys);
    compute_scores(visible, positions, tile, piece, head, buffers.content, buffers.position,
                   buffers.keys, slab.begin);
    // What the product leaves out of the last vectors must not be NaN.
    const std::int64_t whole = keys.count() / Vec::width * Vec::width;
    clear(buffers.weights + whole, piece.stride, piece.rows, piece.padded_keys() - whole);
    multiply_into_band(piece.band, keys.count(), width, buffers.grad_out, buffers.values, first_key,
                       buffers.weights, piece.stride, kNothing);
    for (std::int64_t i = 0; i < piece.rows; ++i) {
        next.prefetch<T>(tile.queries.begin + i, width, a.q, a.k, a.v, problem.out,
                         problem.grad_out);
        const float* factors = dropout.active()
                                   ? dropout_factors(dropout, tile.utterance, head,
                                                     tile.queries.begin + i, keys, buffers.factors)
                                   : nullptr;
        differentiate_row(piece.scores + i * piece.stride, buffers.weights + i * piece.stride,
                          piece.vectors(i), piece.padded_keys(), factors, buffers.minus_lse[i],
                          buffers.inner[i]);
    }
    const Range columns{0, keys.count()};
    multiply_band_transposed(piece.band, columns, buffers.weights, piece.stride,
                             buffers.grad_out_packed, width, first_key, buffers.grad_values);
    multiply_band_transposed(piece.band, columns, piece.scores, piece.stride,
                             buffers.content_packed, width, first_key, buffers.grad_keys);
    add_query_gradients(piece.band, piece.scores, piece.stride, buffers.key_rows, first_key,
                        slab.count(), width, buffers.part,
                        a.content_bias == nullptr ? nullptr : sums.content_bias, grad_queries);
    if (!positions.present) return;
    piece.clear_around_scores();
    add_query_gradients(piece.window_band, piece.window, piece.window_stride,
                        positions.by_row + head * positions.row_size, piece.first, positions.count,
                        width, buffers.part,
                        a.position_bias == nullptr ? nullptr : sums.position_bias, grad_queries);
    // A window may reach beyond the distances that anybody sees, on both sides; those have no sums.
    const Range seen{larger(0, -piece.first),
                     smaller(piece.window_columns, positions.count - piece.first)};
    multiply_band_transposed(piece.window_band, seen, piece.window, piece.window_stride,
                             buffers.position_packed, width, piece.first, sums.positions);
}

template <class T>
void backward_slab(const BlockAttentionBackward& problem, const BackwardScratch& scratch,
                   BackwardBuffers& buffers, const ChainSums& sums, std::int64_t head,
                   std::int64_t utterance, Range slab, float* grad_queries, const Upcoming& next) {
    const BlockAttention& a = problem.attention;
    const Visible& visible = scratch.visible;
    const std::int64_t row = visible.first_row(utterance) + slab.begin, width = a.width;
    pack_all_transposed(rows_from<T>(a.k, row, head), width, slab.count(), buffers.keys);
    pack_all_transposed(rows_from<T>(a.v, row, head), width, slab.count(), buffers.values);
    pack_all(rows_from<T>(a.k, row, head), slab.count(), width, buffers.key_rows);
    std::memset(buffers.grad_keys, 0, slab.count() * width * sizeof(float));
    std::memset(buffers.grad_values, 0, slab.count() * width * sizeof(float));
    for (std::int64_t t = 0; t < visible.tiles(utterance); ++t) {
        const Tile tile = visible.tile(utterance, t);
        bool loaded = false;
        visible.each_piece(tile, slab, [&](Range keys) {
            if (!loaded) load_tile<T>(problem, visible, buffers, tile, head);
            loaded = true;
            backward_piece<T>(problem, scratch, buffers, sums, tile, head, slab, keys,
                              grad_queries + tile.queries.begin * width, next);
        });
    }
    const std::int64_t stride = a.heads * width;
    // The queries had the scale and the unit of log 2 in them.
    store_rows(head_rows<T>(problem.grad_k, a, row, head), stride, buffers.grad_keys, slab.count(),
               width, kLn2);
    store_rows(head_rows<T>(problem.grad_v, a, row, head), stride, buffers.grad_values,
               slab.count(), width, 1.0f);
}

template <class T>
void backward_chain(const BlockAttentionBackward& problem, const BackwardScratch& scratch,
                    BackwardBuffers& buffers, std::int64_t head, std::int64_t chain) {
    const BlockAttention& a = problem.attention;
    const Visible& visible = scratch.visible;
    const Chains& chains = scratch.chains;
    const ChainSums sums = scratch.of_chain(head, chain);
    std::memset(sums.content_bias, 0, scratch.sums_size * sizeof(float));
    const Range items = chains.items_of(chain);
    for (std::int64_t item = items.begin; item < items.end; ++item) {
        const std::int64_t utterance = item / chains.parts;
        const Slabs slabs(chains, visible.length(utterance));
        const Upcoming next = scratch.after(head, chain, item);
        float* grad_queries =
            chains.parts == 1 ? buffers.grad_queries : scratch.queries_of_part(head, item);
        std::memset(grad_queries, 0, slabs.length * a.width * sizeof(float));
        const Range own = chains.slabs_of(item, slabs.count);
        for (std::int64_t i = own.begin; i < own.end; ++i) {
            backward_slab<T>(problem, scratch, buffers, sums, head, utterance, slabs[i],
                             grad_queries, next);
        }
        if (chains.parts > 1) continue;
        store_rows(head_rows<T>(problem.grad_q, a, visible.first_row(utterance), head),
                   a.heads * a.width, grad_queries, slabs.length, a.width,
                   static_cast<float>(a.scale));
    }
}

// The gradients of an utterance's queries from those of its parts.
template <class T>
void join_parts(const BlockAttentionBackward& problem, const BackwardScratch& scratch,
                const ParallelFor& parallel) {
    const BlockAttention& a = problem.attention;
    const Visible& visible = scratch.visible;
    const std::int64_t parts = scratch.chains.parts;
    parallel(a.heads * a.utterances, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t head = i / a.utterances, utterance = i % a.utterances;
            if (!lives(a, head)) continue;
            const std::int64_t frames = visible.length(utterance);
            float* sum = scratch.queries_of_part(head, utterance * parts);
            for (std::int64_t part = 1; part < parts; ++part) {
                add_to(sum, scratch.queries_of_part(head, utterance * parts + part),
                       frames * a.width);
            }
            store_rows(head_rows<T>(problem.grad_q, a, visible.first_row(utterance), head),
                       a.heads * a.width, sum, frames, a.width, static_cast<float>(a.scale));
        }
    });
}

// gradient[d] = factor * the sum over the chains of rows [rows.begin, rows.end) of their sums,
// which `rows_of(chain)` gives, [.., width].
template <class T, class RowsOf>
void join_chains(const Chains& chains, Range rows, std::int64_t width, float factor,
                 const RowsOf& rows_of, T* gradient) {
    for (std::int64_t d = 0; d < width; d += Vec::width) {
        Vec total(0.0f);
        for (std::int64_t chain = 0; chain < chains.count; ++chain) {
            const float* sums = rows_of(chain) + d;
            for (std::int64_t row = rows.begin; row < rows.end; ++row) {
                total = total + load_some(sums + row * width, width - d);
            }
        }
        store_some(gradient + d, total * Vec(factor), width - d);
    }
}

// The gradients that the heads of all utterances share. A dead head has no sums.
template <class T>
void join_chains(const BlockAttentionBackward& problem, const BackwardScratch& scratch,
                 const ParallelFor& parallel) {
    const BlockAttention& a = problem.attention;
    const Positions& positions = scratch.positions;
    const auto join = [&](void* gradient, std::int64_t row, std::int64_t head, Range rows,
                          float factor, float* ChainSums::* which) {
        if (gradient == nullptr) return;
        T* target = head_rows<T>(gradient, a, row, head);
        if (!lives(a, head)) rows = {0, 0};
        join_chains(
            scratch.chains, rows, a.width, factor,
            [&](std::int64_t chain) { return scratch.of_chain(head, chain).*which; }, target);
    };
    const float scale = static_cast<float>(a.scale);
    for (std::int64_t head = 0; head < a.heads; ++head) {
        join(problem.grad_content_bias, 0, head, {0, 1}, scale, &ChainSums::content_bias);
        join(problem.grad_position_bias, 0, head, {0, 1}, scale, &ChainSums::position_bias);
    }
    if (!positions.present) return;
    const std::int64_t last = 2 * a.reach;
    parallel(last + 1, 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            // All farther distances share the first and the last row.
            const Range distances{
                row == 0 ? positions.first : row - a.reach,
                row == last ? positions.first + positions.count : row - a.reach + 1};
            const Range own =
                intersection({distances.begin - positions.first, distances.end - positions.first},
                             {0, positions.count});
            for (std::int64_t head = 0; head < a.heads; ++head) {
                join(problem.grad_rel_pos, row, head, own, kLn2, &ChainSums::positions);
            }
        }
    });
}

template <class T>
void backward(const BlockAttentionBackward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    const BlockAttention& a = problem.attention;
    const BackwardScratch scratch(a, workspace);
    const Chains& chains = scratch.chains;
    scratch.positions.fill<T>(a, parallel);
    scratch.fill_costs();
    each_unused(a, parallel, [&](std::int64_t row, std::int64_t count, Range heads) {
        clear_rows<T>(problem.grad_q, a, row, count, heads);
        clear_rows<T>(problem.grad_k, a, row, count, heads);
        clear_rows<T>(problem.grad_v, a, row, count, heads);
    });
    share_out(
        a.heads * chains.count, workspace.workers, parallel,
        [&](std::int64_t unit) {
            return lives(a, unit % a.heads) ? scratch.costs[unit / a.heads] : 0;
        },
        [&](std::int64_t worker, Range units) {
            Arena own(scratch.buffers + worker * scratch.buffer_size);
            BackwardBuffers buffers(own, scratch.visible, chains);
            for (std::int64_t unit = units.begin; unit < units.end; ++unit) {
                const std::int64_t head = unit % a.heads;
                if (!lives(a, head)) continue;
                backward_chain<T>(problem, scratch, buffers, head, unit / a.heads);
            }
        });
    if (chains.parts > 1) join_parts<T>(problem, scratch, parallel);
    join_chains<T>(problem, scratch, parallel);
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
