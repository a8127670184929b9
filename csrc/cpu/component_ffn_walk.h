// The walk of token tiles through the hidden units, which both directions of component_ffn share.
#pragma once

#include <cstring>

#include "arena.h"
#include "dmao/component_ffn.h"
#include "dmao/philox.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTile = 128;  // tokens
constexpr std::int64_t kSmallestTile = 32;
constexpr std::int64_t kChunk = 576;      // hidden units
constexpr std::int64_t kChunkStep = 192;  // whole panels
static_assert(kChunkStep % kPanel == 0);

// Every worker gets equally many tiles.
std::int64_t tile_tokens(std::int64_t tokens, std::int64_t workers) {
    if (tokens <= kSmallestTile) return kSmallestTile;
    const std::int64_t tiles = round_up(divide_up(tokens, kTile), workers);
    const std::int64_t tile = round_up(divide_up(tokens, tiles), kRows);
    return tile < kSmallestTile ? kSmallestTile : tile;
}

std::int64_t chunk_units(std::int64_t hidden) {
    return round_up(divide_up(hidden, divide_up(hidden, kChunk)), kChunkStep);
}

// Both directions multiply twice: a tile of width `in` to hidden units, those to a tile of width
// `out`. `inward` holds the first matrix as panels of hidden units, [unit panel][in]; `outward` the
// second as panels of output columns for each chunk, [chunk][column panel][unit in chunk].
struct Weights {
    std::int64_t in, out, hidden, chunk;
    float *inward, *outward;

    Weights(Arena& arena, std::int64_t in, std::int64_t out, std::int64_t hidden)
        : in(in),
          out(out),
          hidden(hidden),
          chunk(hidden == 0 ? 0 : chunk_units(hidden)),
          inward(arena.take(in * padded_columns(hidden))),
          outward(arena.take(hidden * padded_columns(out))) {}

    const float* inward_chunk(std::int64_t unit) const { return inward + unit * in; }
    const float* outward_chunk(std::int64_t unit) const {
        return outward + unit * padded_columns(out);
    }

    // pack(matrix, first k, depth, first n, columns, panel) is one of gemm.h's.
    template <class Matrix, class Pack>
    void fill(const Matrix& first, const Matrix& second, const Pack& pack,
              const ParallelFor& parallel) const {
        const std::int64_t unit_panels = divide_up(hidden, kPanel);
        const std::int64_t out_panels = divide_up(out, kPanel);
        const std::int64_t chunks = hidden == 0 ? 0 : divide_up(hidden, chunk);
        parallel(unit_panels + chunks * out_panels, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                if (i < unit_panels) {
                    const std::int64_t unit = i * kPanel;
                    pack(first, 0, in, unit, smaller(kPanel, hidden - unit), inward + unit * in);
                } else {
                    const std::int64_t unit = (i - unit_panels) / out_panels * chunk;
                    const std::int64_t column = (i - unit_panels) % out_panels * kPanel;
                    const std::int64_t depth = smaller(chunk, hidden - unit);
                    pack(second, unit, depth, column, smaller(kPanel, out - column),
                         outward + unit * padded_columns(out) + column * depth);
                }
            }
        });
    }
};

const float* as_float(const float* source, std::int64_t, float*) { return source; }

const float* as_float(const bfloat16* source, std::int64_t count, float* buffer) {
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        const int n = static_cast<int>(smaller(Vec::width, count - i));
        store(buffer + i, load(source + i, n), n);
    }
    return buffer;
}

// Where a tile of results is summed up: in place, or in a buffer that is narrowed at the end.
float* sums_of(float* target, float*) { return target; }
float* sums_of(bfloat16*, float* buffer) { return buffer; }

void finish(float*, std::int64_t, const float*) {}

void finish(bfloat16* target, std::int64_t count, const float* sums) {
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        const int n = static_cast<int>(smaller(Vec::width, count - i));
        store(target + i, load(sums + i, n), n);
    }
}

// out[i] = the bias of unit units[i] (null: i), or zero.
template <class T>
void gather_bias(const T* bias, const std::int32_t* units, std::int64_t count, float* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        out[i] = bias == nullptr ? 0.0f : to_float(bias[units == nullptr ? i : units[i]]);
    }
}

// factors[i] of the live units first + i, i < count, of a token. Groups of 128 neighbouring units
// share one call of the generator; where only some of them live, those are picked out of it.
void dropout_factors(const Dropout& dropout, const std::int32_t* units, std::uint32_t token,
                     std::int64_t first, std::int64_t count, float* factors) {
    const std::int32_t* unit = units + first;
    for (std::int64_t i = 0; i < count;) {
        const std::int32_t group = unit[i] / kPhiloxUnits, base = group * kPhiloxUnits;
        if (i + kPhiloxUnits <= count && unit[i + kPhiloxUnits - 1] - base == kPhiloxUnits - 1) {
            dropout.factors(token, group, factors + i);
            i += kPhiloxUnits;
        } else {
            float all[kPhiloxUnits];
            dropout.factors(token, group, all);
            for (; i < count && unit[i] < base + kPhiloxUnits; ++i)
                factors[i] = all[unit[i] - base];
        }
    }
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

// Buffers of one worker for one tile of tokens.
struct TileBuffers {
    float* hidden;          // [tile, chunk]
    float* factors;         // dropout factors of one token
    float *input, *output;  // [tile, in], [tile, out]: bfloat16 only

    TileBuffers(Arena& arena, std::int64_t tile, const Weights& weights, DType dtype)
        : hidden(arena.take(tile * weights.chunk)),
          factors(arena.take(weights.chunk)),
          input(arena.take(dtype == DType::float32 ? 0 : tile * weights.in)),
          output(arena.take(dtype == DType::float32 ? 0 : tile * weights.out)) {}
};

// What the walks of both directions share: up to `tokens` at a time, tile by tile.
struct Walk {
    std::int64_t tile, workers;
    DType dtype;
    Weights weights;
    std::int64_t buffer_size;
    float* buffers;

    Walk(Arena& arena, const ComponentFfn& f, std::int64_t tokens, std::int64_t in,
         std::int64_t out, std::int64_t workers)
        : tile(tile_tokens(tokens, workers)),
          workers(workers),
          dtype(f.dtype),
          weights(arena, in, out, f.hidden) {
        Arena counter(nullptr);
        TileBuffers(counter, tile, weights, dtype);
        buffer_size = counter.used();
        buffers = arena.take(buffer_size * workers);
    }

    // body(first token, count, buffers) for every tile of the tokens [first, first + count), each
    // worker with its own buffers.
    template <class Body>
    void each_tile(std::int64_t first, std::int64_t count, const ParallelFor& parallel,
                   const Body& body) const {
        const std::int64_t tiles = divide_up(count, tile), end = first + count;
        parallel(workers, 1, [&](std::int64_t begin_worker, std::int64_t end_worker) {
            for (std::int64_t worker = begin_worker; worker < end_worker; ++worker) {
                Arena own(buffers + worker * buffer_size);
                const TileBuffers mine(own, tile, weights, dtype);
                const std::int64_t last = first + tiles * (worker + 1) / workers * tile;
                for (std::int64_t token = first + tiles * worker / workers * tile; token < last;
                     token += tile) {
                    body(token, smaller(tile, end - token), mine);
                }
            }
        });
    }
};

// input [rows, in] -> hidden chunk by chunk, through between(first unit, units, row stride) which
// works on buffers.hidden in place -> added to output [rows, out].
template <class Between>
void walk_chunks(const Weights& weights, std::int64_t rows, const float* input, float* hidden,
                 float* output, const Between& between) {
    for (std::int64_t unit = 0; unit < weights.hidden; unit += weights.chunk) {
        const std::int64_t units = smaller(weights.chunk, weights.hidden - unit);
        const std::int64_t stride = padded_columns(units);
        std::memset(hidden, 0, rows * stride * sizeof(float));
        // Whole vectors: the packed columns beyond the last unit are zero.
        multiply<Order::row>(rows, stride, weights.in, input, weights.in,
                             weights.inward_chunk(unit), hidden, stride);
        between(unit, units, stride);
        multiply<Order::row>(rows, weights.out, units, hidden, stride, weights.outward_chunk(unit),
                             output, weights.out);
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
