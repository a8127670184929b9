// The walk of token tiles through the hidden units, which both directions of component_ffn share.
#pragma once

#include "arena.h"
#include "dmao/component_ffn.h"
#include "dmao/philox.h"
#include "gemm.h"
#include "tiles.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kGroup = kPhiloxUnits;  // hidden units that are activated together
// Hidden units of a chunk: whole groups, so that each is drawn once, and whole panels.
constexpr std::int64_t kChunkStep = kGroup % kPanel == 0 ? kGroup : 3 * kGroup;
constexpr std::int64_t kChunk = 512 / kChunkStep * kChunkStep;
static_assert(kChunkStep % kPanel == 0);

std::int64_t chunk_units(std::int64_t hidden) {
    return round_up(divide_up(hidden, divide_up(hidden, kChunk)), kChunkStep);
}

// Both directions multiply twice: a tile of width `in` to hidden units, those to a tile of width
// `out`. `inward` holds the first matrix as panels of hidden units, [unit panel][in]; `outward` the
// second as panels of output columns for each chunk, [chunk][column panel][unit in chunk].
template <class E>
struct Weights {
    std::int64_t in, out, hidden, chunk;
    E *inward, *outward;

    Weights(Arena& arena, std::int64_t in, std::int64_t out, std::int64_t hidden)
        : in(in),
          out(out),
          hidden(hidden),
          chunk(hidden == 0 ? 0 : chunk_units(hidden)),
          inward(take<E>(arena, padded_depth<E>(in) * padded_columns(hidden))),
          outward(take<E>(arena, padded_depth<E>(hidden) * padded_columns(out))) {}

    const E* inward_chunk(std::int64_t unit) const { return inward + unit * padded_depth<E>(in); }
    const E* outward_chunk(std::int64_t unit) const { return outward + unit * padded_columns(out); }

    // body(first unit, units, row stride of the hidden values) for every chunk of hidden units; for
    // an empty one where there are none, so that the result is what it starts from.
    template <class Body>
    void each_chunk(const Body& body) const {
        std::int64_t unit = 0;
        do {
            const std::int64_t units = smaller(chunk, hidden - unit);
            body(unit, units, padded_columns(units));
            unit += chunk;
        } while (unit < hidden);
    }

    // Packs the first matrix and, if `both`, the second.
    // pack(matrix, first k, depth, first n, columns, panel) is one of operands.h's.
    template <class Matrix, class Pack>
    void fill(const Matrix& first, const Matrix& second, bool both, const Pack& pack,
              const ParallelFor& parallel) const {
        const std::int64_t unit_panels = divide_up(hidden, kPanel);
        const std::int64_t out_panels = divide_up(out, kPanel);
        const std::int64_t chunks = hidden == 0 || !both ? 0 : divide_up(hidden, chunk);
        parallel(unit_panels + chunks * out_panels, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                if (i < unit_panels) {
                    const std::int64_t unit = i * kPanel;
                    pack(first, 0, in, unit, smaller(kPanel, hidden - unit),
                         inward + unit * padded_depth<E>(in));
                } else {
                    const std::int64_t unit = (i - unit_panels) / out_panels * chunk;
                    const std::int64_t column = (i - unit_panels) % out_panels * kPanel;
                    const std::int64_t depth = smaller(chunk, hidden - unit);
                    pack(second, unit, depth, column, smaller(kPanel, out - column),
                         outward + unit * padded_columns(out) + column * padded_depth<E>(depth));
                }
            }
        });
    }
};

// Where a tile of results is summed up: in place, or in a buffer that is narrowed at the end.
float* sums_of(float* target, float*) { return target; }
float* sums_of(bfloat16*, float* buffer) { return buffer; }

void finish(float*, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t) {}

void finish(bfloat16* target, std::int64_t stride, std::int64_t rows, std::int64_t columns,
            const float* sums, std::int64_t sums_stride) {
    for (std::int64_t row = 0; row < rows; ++row, target += stride, sums += sums_stride) {
        convert(sums, columns, target);
    }
}

// out[i] = the bias of unit units[i] (null: i), or zero.
template <class T>
void gather_bias(const T* bias, const std::int32_t* units, std::int64_t count, float* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        out[i] = bias == nullptr ? 0.0f : to_float(bias[units == nullptr ? i : units[i]]);
    }
}

// The dropout factors of the live units first + i, i < count, of a token, or null where nothing is
// dropped. Groups of 128 neighbouring units share one call of the generator; where only some of
// them live, those are picked out of it.
const float* dropout_factors(const Dropout& dropout, const std::int32_t* units, std::int64_t token,
                             std::int64_t first, std::int64_t count, float* factors) {
    if (!dropout.active()) return nullptr;
    const std::uint32_t row = static_cast<std::uint32_t>(token);
    const std::int32_t* unit = units + first;
    for (std::int64_t i = 0; i < count;) {
        const std::int32_t group = unit[i] / kPhiloxUnits, base = group * kPhiloxUnits;
        if (i + kPhiloxUnits <= count && unit[i + kPhiloxUnits - 1] - base == kPhiloxUnits - 1) {
            dropout.factors(row, group, factors + i);
            i += kPhiloxUnits;
        } else {
            float all[kPhiloxUnits];
            dropout.factors(row, group, all);
            for (; i < count && unit[i] < base + kPhiloxUnits; ++i)
                factors[i] = all[unit[i] - base];
        }
    }
    return factors;
}

template <class T>
Selection<T> first_weight(const ComponentFfn& f) {
    const bool all = f.hidden == f.stored_hidden;
    return {static_cast<const T*>(f.w1), f.in_width, all ? nullptr : f.units, nullptr};
}

template <class T>
Selection<T> second_weight(const ComponentFfn& f) {
    const bool all = f.hidden == f.stored_hidden;
    return {static_cast<const T*>(f.w2), f.stored_hidden, nullptr, all ? nullptr : f.units};
}

// Buffers of one worker for one tile of tokens. Both products take their tokens as strips.
template <class T>
struct TileBuffers {
    using E = Operand<T>;
    E* input;       // strips of the tile, [kRows * in] each
    float* sums;    // [tile, chunk]: what the first product gives
    E* hidden;      // in the same place, strips of what the second one takes
    E* rows;        // [kRows, chunk]: a strip's rows before it is packed
    float* output;  // [tile, out], where the tensor does not hold sums

    TileBuffers(Arena& arena, std::int64_t tile, const Weights<E>& weights)
        : input(take<E>(arena, round_up(tile, kRows) * padded_depth<E>(weights.in))),
          sums(arena.take(round_up(tile, kRows) * weights.chunk)),
          hidden(reinterpret_cast<E*>(sums)),
          rows(take<E>(arena, kRows * weights.chunk)),
          output(arena.take(sizeof(T) == sizeof(float) ? 0 : tile * weights.out)) {}
};

// Rows [0, count) of a tile, strip by strip: body(first row, rows).
template <class Body>
void each_strip(std::int64_t count, const Body& body) {
    for (std::int64_t row = 0; row < count; row += kRows) body(row, smaller(kRows, count - row));
}

// A tile of a tensor as strips.
template <class T, class E>
void pack_tile(const T* tile, std::int64_t width, std::int64_t count, E* strips) {
    each_strip(count, [&](std::int64_t row, std::int64_t rows) {
        pack_strip(tile + row * width, width, width, rows, strips + row * padded_depth<E>(width));
    });
}

// What the walks of both directions share: up to `tokens` at a time, tile by tile.
template <class T>
struct Walk {
    std::int64_t tile, workers;
    Weights<Operand<T>> weights;
    std::int64_t buffer_size;
    float* buffers;

    Walk(Arena& arena, const ComponentFfn& f, std::int64_t tokens, std::int64_t in,
         std::int64_t out, std::int64_t workers)
        : tile(tile_tokens(tokens, workers)), workers(workers), weights(arena, in, out, f.hidden) {
        Arena counter(nullptr);
        TileBuffers<T>(counter, tile, weights);
        buffer_size = counter.used();
        buffers = arena.take(buffer_size * workers);
    }

    // body(first token, count, buffers) for every tile of the tokens [first, first + count), each
    // worker with its own buffers.
    template <class Body>
    void each_tile(std::int64_t first, std::int64_t count, const ParallelFor& parallel,
                   const Body& body) const {
        const auto run = [&](std::int64_t i, std::int64_t worker) {
            Arena own(buffers + worker * buffer_size);
            body(first + i * tile, smaller(tile, count - i * tile),
                 TileBuffers<T>(own, tile, weights));
        };
        parallel.each_with(divide_up(count, tile), workers, run);
    }
};

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
