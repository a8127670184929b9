// The feed-forward layer over its live hidden units, without a hidden tensor in memory.
//
// Floor: with T tokens, H live units, d = in_width = out_width, the multiply-adds are
//     forward   4 T d H flops,   backward   8 T d H flops
// at the FMA peak of the core(s); reading x and writing y, 8 T d bytes, hides behind them. The
// backward pass recomputes no product: the forward one keeps the pre-activations (T H values).
//
// Forward: tiles of tokens go through the hidden units chunk by chunk. A tile, its chunk of hidden
// values and its output stay in L2; each packed weight is read once per tile (from L3) and used for
// all of the tile's tokens. Bias, activation and dropout are applied between the two products.
//
// Backward: pass 1, the same walk mirrored: grad_y W2 -> gradient of the hidden units -> W1 ->
// grad_x. On its way it writes the hidden gradients and the activations as packed panels, so that
// pass 2 is again one product of that kind per panel: x^T grad_hidden = grad_w1^T and
// grad_y^T activations = grad_w2. A sum over tokens belongs to one task and runs in a fixed order,
// so the bits depend neither on the number of threads nor on the tile size.
//
// bfloat16 tensors are widened when they are packed or read; all arithmetic is in float.
#include "dmao/component_ffn.h"

#include <cstring>

#include "activation.h"
#include "dmao/philox.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTile = 128;  // tokens
constexpr std::int64_t kSmallestTile = 32;
constexpr std::int64_t kChunk = 576;      // hidden units
constexpr std::int64_t kChunkStep = 192;  // whole panels, and whole groups of dropout units
constexpr std::int64_t kGradRows = 192;   // of a weight gradient, per task
constexpr std::int64_t kGradDepth = 128;  // tokens between two visits of these sums
constexpr std::int64_t kStrip = Vec::width == 16 ? 16 : 24;  // columns that pass 2 reads together
constexpr std::int64_t kSumDepth = 16;  // tokens that a bias gradient sums one by one
static_assert(kStrip % kRows == 0 && kStrip % Vec::width == 0 && kGradRows % kStrip == 0);
static_assert(kChunkStep % kPanel == 0 && kChunkStep % kPhiloxUnits == 0);

// Deals out the scratch memory; with a null base it only counts.
class Arena {
  public:
    explicit Arena(float* base) : base_(base) {}

    float* take(std::int64_t count) {
        float* result = base_ == nullptr ? nullptr : base_ + used_;
        used_ += round_up(count, 16);  // a cache line
        return result;
    }

    std::int64_t used() const { return used_; }

  private:
    float* base_;
    std::int64_t used_ = 0;
};

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

void set(float& target, float value) { target = value; }
void set(bfloat16& target, float value) { target = to_bfloat16(value); }

// out[i] = the bias of unit units[i] (null: i), or zero.
template <class T>
void gather_bias(const T* bias, const std::int32_t* units, std::int64_t count, float* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        out[i] = bias == nullptr ? 0.0f : to_float(bias[units == nullptr ? i : units[i]]);
    }
}

// factors[i] of the live units first + i, i < count, of a token. Groups of 64 neighbouring units
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
    float* sums;            // one block of a weight gradient

    TileBuffers(Arena& arena, std::int64_t tile, const Weights& weights, DType dtype)
        : hidden(arena.take(tile * weights.chunk)),
          factors(arena.take(weights.chunk)),
          input(arena.take(dtype == DType::float32 ? 0 : tile * weights.in)),
          output(arena.take(dtype == DType::float32 ? 0 : tile * weights.out)),
          sums(arena.take(kGradRows * kPanel)) {}
};

// What the walks of both directions share.
struct Walk {
    std::int64_t tokens, tile, workers;
    DType dtype;
    Weights weights;
    std::int64_t buffer_size;
    float* buffers;

    Walk(Arena& arena, const ComponentFfn& f, std::int64_t in, std::int64_t out,
         std::int64_t workers)
        : tokens(f.tokens),
          tile(tile_tokens(f.tokens, workers)),
          workers(workers),
          dtype(f.dtype),
          weights(arena, in, out, f.hidden) {
        Arena counter(nullptr);
        TileBuffers(counter, tile, weights, dtype);
        buffer_size = counter.used();
        buffers = arena.take(buffer_size * workers);
    }

    // body(item, buffers) for every item, each worker with its own buffers.
    template <class Body>
    void each(std::int64_t items, const ParallelFor& parallel, const Body& body) const {
        parallel(workers, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t worker = begin; worker < end; ++worker) {
                Arena own(buffers + worker * buffer_size);
                const TileBuffers mine(own, tile, weights, dtype);
                const std::int64_t last = items * (worker + 1) / workers;
                for (std::int64_t i = items * worker / workers; i < last; ++i) body(i, mine);
            }
        });
    }

    // body(first token, tokens, buffers) for every tile.
    template <class Body>
    void each_tile(const ParallelFor& parallel, const Body& body) const {
        each(divide_up(tokens, tile), parallel, [&](std::int64_t i, const TileBuffers& buffers) {
            body(i * tile, smaller(tile, tokens - i * tile), buffers);
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

// --- Forward

struct ForwardScratch {
    Arena arena;
    Walk walk;
    float *bias1, *bias2;

    ForwardScratch(const ComponentFfn& f, const Workspace& workspace)
        : arena(workspace.scratch),
          walk(arena, f, f.in_width, f.out_width, workspace.workers),
          bias1(arena.take(padded_columns(f.hidden))),
          bias2(arena.take(f.out_width)) {}
};

// One token: bias, activation, dropout (factors may be null); keeps the pre-activations (or not).
template <class T, class Activate>
void activate(float* hidden, const float* bias, const float* factors, T* kept, std::int64_t units) {
    for (std::int64_t i = 0; i < units; i += Vec::width) {
        const Vec h = load(hidden + i) + load(bias + i);
        if (kept != nullptr) {
            const std::int64_t rest = units - i;
            rest >= Vec::width ? store(kept + i, h) : store(kept + i, h, static_cast<int>(rest));
        }
        Vec value = Activate::value(h);
        if (factors != nullptr) value = value * load(factors + i);
        store(hidden + i, value);
    }
}

template <class T, class Activate>
void forward(const ComponentFfnForward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const ComponentFfn& f = problem.ffn;
    const ForwardScratch scratch(f, workspace);
    const Dropout dropout(f.p, f.seed);
    gather_bias(static_cast<const T*>(f.b1), f.units, f.hidden, scratch.bias1);
    gather_bias(static_cast<const T*>(problem.b2), nullptr, f.out_width, scratch.bias2);
    scratch.walk.weights.fill(first_weight<T>(f), second_weight<T>(f), pack_panel_transposed<T>,
                              parallel);

    scratch.walk.each_tile(parallel, [&](std::int64_t first, std::int64_t rows,
                                         const TileBuffers& buffers) {
        const T* x = static_cast<const T*>(f.x) + first * f.in_width;
        T* y = static_cast<T*>(problem.y) + first * f.out_width;
        const float* input = as_float(x, rows * f.in_width, buffers.input);
        float* output = sums_of(y, buffers.output);
        for (std::int64_t row = 0; row < rows; ++row) {
            std::memcpy(output + row * f.out_width, scratch.bias2, f.out_width * sizeof(float));
        }
        walk_chunks(scratch.walk.weights, rows, input, buffers.hidden, output,
                    [&](std::int64_t unit, std::int64_t units, std::int64_t stride) {
                        T* kept = static_cast<T*>(problem.pre_activation);
                        float* factors = dropout.active() ? buffers.factors : nullptr;
                        for (std::int64_t row = 0; row < rows; ++row) {
                            const std::int64_t token = first + row;
                            if (factors != nullptr) {
                                dropout_factors(dropout, f.units, static_cast<std::uint32_t>(token),
                                                unit, units, factors);
                            }
                            activate<T, Activate>(
                                buffers.hidden + row * stride, scratch.bias1 + unit, factors,
                                kept == nullptr ? nullptr : kept + token * f.hidden + unit, units);
                        }
                    });
        finish(y, rows * f.out_width, output);
    });
}

// --- Backward

struct BackwardScratch {
    Arena arena;
    Walk walk;
    // All tokens cut the way pass 2 reads them: panels of hidden units, [unit panel][token], and
    // strips of x and grad_y, [strip][token].
    float *activations, *grad_hidden, *x, *grad_y;

    BackwardScratch(const ComponentFfn& f, const Workspace& workspace)
        : arena(workspace.scratch),
          walk(arena, f, f.out_width, f.in_width, workspace.workers),
          activations(arena.take(f.tokens * padded_columns(f.hidden))),
          grad_hidden(arena.take(f.tokens * padded_columns(f.hidden))),
          x(arena.take(f.tokens * round_up(f.in_width, kStrip))),
          grad_y(arena.take(f.tokens * round_up(f.out_width, kStrip))) {}
};

// Cuts rows [first, first + count) of [tokens, width] into strips of kStrip columns, the last of
// which is padded with zeros.
template <class T>
void cut_strips(const T* rows, std::int64_t width, std::int64_t tokens, std::int64_t first,
                std::int64_t count, float* strips) {
    for (std::int64_t column = 0; column < width; column += kStrip) {
        const std::int64_t columns = smaller(kStrip, width - column);
        float* out = strips + column * tokens + first * kStrip;
        const T* row = rows + column;
        for (std::int64_t i = 0; i < count; ++i, row += width, out += kStrip) {
            for (std::int64_t j = 0; j < kStrip; j += Vec::width) {
                const std::int64_t rest = columns - j;
                store(out + j, rest >= Vec::width
                                   ? load(row + j)
                                   : load(row + j, rest > 0 ? static_cast<int>(rest) : 0));
            }
        }
    }
}

// One token: from the gradient of the dropped-out activations, in `hidden`, to the gradient of the
// pre-activations, which replaces it. Both it and the activations also go to this token's rows in
// the panels, the first of which is given; the panels of all tokens follow each other.
template <class T, class Activate>
void differentiate(float* hidden, const T* kept, const float* factors, std::int64_t units,
                   std::int64_t tokens, std::int64_t token, float* activations,
                   float* grad_hidden) {
    for (std::int64_t first = 0; first < units; first += kPanel) {
        const std::int64_t width = panel_columns(units, first);
        const std::int64_t panel = first * tokens + token * width;
        for (std::int64_t j = 0; j < width; j += Vec::width) {
            const std::int64_t i = first + j, rest = units - i;
            const Vec h =
                rest >= Vec::width ? load(kept + i) : load(kept + i, static_cast<int>(rest));
            auto [value, slope] = Activate::value_and_slope(h);
            Vec grad = load(hidden + i) * slope;
            if (factors != nullptr) {
                const Vec factor = load(factors + i);
                value = value * factor;
                grad = grad * factor;
            }
            store(hidden + i, grad);
            store(grad_hidden + panel + j, grad);
            store(activations + panel + j, value);
        }
    }
}

// Pass 1: fills the panels and grad_x.
template <class T, class Activate>
void backward_tokens(const ComponentFfnBackward& problem, const BackwardScratch& scratch,
                     const ParallelFor& parallel) {
    const ComponentFfn& f = problem.ffn;
    const Dropout dropout(f.p, f.seed);
    scratch.walk.each_tile(parallel, [&](std::int64_t first, std::int64_t rows,
                                         const TileBuffers& buffers) {
        const T* grad_y = static_cast<const T*>(problem.grad_y) + first * f.out_width;
        T* grad_x = static_cast<T*>(problem.grad_x) + first * f.in_width;
        cut_strips(static_cast<const T*>(f.x) + first * f.in_width, f.in_width, f.tokens, first,
                   rows, scratch.x);
        cut_strips(grad_y, f.out_width, f.tokens, first, rows, scratch.grad_y);
        const float* input = as_float(grad_y, rows * f.out_width, buffers.input);
        float* output = sums_of(grad_x, buffers.output);
        std::memset(output, 0, rows * f.in_width * sizeof(float));
        walk_chunks(scratch.walk.weights, rows, input, buffers.hidden, output,
                    [&](std::int64_t unit, std::int64_t units, std::int64_t stride) {
                        const T* kept = static_cast<const T*>(problem.pre_activation);
                        float* factors = dropout.active() ? buffers.factors : nullptr;
                        for (std::int64_t row = 0; row < rows; ++row) {
                            const std::int64_t token = first + row;
                            if (factors != nullptr) {
                                dropout_factors(dropout, f.units, static_cast<std::uint32_t>(token),
                                                unit, units, factors);
                            }
                            differentiate<T, Activate>(buffers.hidden + row * stride,
                                                       kept + token * f.hidden + unit, factors,
                                                       units, f.tokens, token,
                                                       scratch.activations + unit * f.tokens,
                                                       scratch.grad_hidden + unit * f.tokens);
                        }
                    });
        finish(grad_x, rows * f.in_width, output);
    });
}

// sums[i, j] = the sum over tokens of strips[token, i] * panel[token, j], rows x columns of them.
void sum_products(const float* strips, std::int64_t rows, const float* panel, std::int64_t columns,
                  std::int64_t tokens, float* sums) {
    std::memset(sums, 0, rows * kPanel * sizeof(float));
    for (std::int64_t token = 0; token < tokens; token += kGradDepth) {
        const std::int64_t depth = smaller(kGradDepth, tokens - token);
        const float* right = panel + token * padded_columns(columns);
        for (std::int64_t row = 0; row < rows; row += kStrip) {
            multiply<Order::column>(smaller(kStrip, rows - row), columns, depth,
                                    strips + row * tokens + token * kStrip, kStrip, right,
                                    sums + row * kPanel, kPanel);
        }
    }
}

// The sum over tokens of the first count columns, by halves: its rounding error then grows with the
// logarithm of the number of tokens.
Vec sum_halves(const float* values, std::int64_t stride, std::int64_t tokens, int count) {
    if (tokens > kSumDepth) {
        const std::int64_t half = tokens / 2;
        return sum_halves(values, stride, half, count) +
               sum_halves(values + half * stride, stride, tokens - half, count);
    }
    Vec sum(0.0f);
    for (std::int64_t token = 0; token < tokens; ++token) {
        sum = sum + load(values + token * stride, count);
    }
    return sum;
}

// set(column, the sum over tokens of values[token, column]) for count columns.
template <class Set>
void sum_tokens(const float* values, std::int64_t stride, std::int64_t tokens, std::int64_t count,
                const Set& set) {
    for (std::int64_t column = 0; column < count; column += Vec::width) {
        const int n = static_cast<int>(smaller(Vec::width, count - column));
        float lanes[Vec::width];
        store(lanes, sum_halves(values + column, stride, tokens, n));
        for (int i = 0; i < n; ++i) set(column + i, lanes[i]);
    }
}

// Pass 2: one task per panel of hidden units and group of strips of either weight gradient.
template <class T>
void backward_weights(const ComponentFfnBackward& problem, const BackwardScratch& scratch,
                      const ParallelFor& parallel) {
    const ComponentFfn& f = problem.ffn;
    T *grad_w1 = static_cast<T*>(problem.grad_w1), *grad_w2 = static_cast<T*>(problem.grad_w2);
    T *grad_b1 = static_cast<T*>(problem.grad_b1), *grad_b2 = static_cast<T*>(problem.grad_b2);
    const std::int64_t first_tasks = divide_up(f.in_width, kGradRows);
    const std::int64_t panel_tasks = first_tasks + divide_up(f.out_width, kGradRows);
    const std::int64_t weight_tasks = divide_up(f.hidden, kPanel) * panel_tasks;
    const std::int64_t bias_tasks = grad_b2 == nullptr ? 0 : divide_up(f.out_width, kStrip);

    const auto run = [&](std::int64_t task, const TileBuffers& buffers) {
        if (task >= weight_tasks) {
            const std::int64_t column = (task - weight_tasks) * kStrip;
            sum_tokens(scratch.grad_y + column * f.tokens, kStrip, f.tokens,
                       smaller(kStrip, f.out_width - column),
                       [&](std::int64_t i, float sum) { set(grad_b2[column + i], sum); });
            return;
        }
        const std::int64_t unit = task / panel_tasks * kPanel;
        const std::int64_t units = smaller(kPanel, f.hidden - unit);
        const std::int32_t* stored = f.units + unit;
        const std::int64_t block = task % panel_tasks;
        float* sums = buffers.sums;
        if (block < first_tasks) {
            const std::int64_t column = block * kGradRows;
            const std::int64_t columns = smaller(kGradRows, f.in_width - column);
            const float* panel = scratch.grad_hidden + unit * f.tokens;
            sum_products(scratch.x + column * f.tokens, columns, panel, units, f.tokens, sums);
            for (std::int64_t j = 0; j < units; ++j) {
                T* target = grad_w1 + stored[j] * f.in_width + column;
                for (std::int64_t i = 0; i < columns; ++i) set(target[i], sums[i * kPanel + j]);
            }
            if (block == 0 && grad_b1 != nullptr) {
                sum_tokens(panel, padded_columns(units), f.tokens, units,
                           [&](std::int64_t j, float sum) { set(grad_b1[stored[j]], sum); });
            }
        } else {
            const std::int64_t row = (block - first_tasks) * kGradRows;
            const std::int64_t rows = smaller(kGradRows, f.out_width - row);
            sum_products(scratch.grad_y + row * f.tokens, rows,
                         scratch.activations + unit * f.tokens, units, f.tokens, sums);
            for (std::int64_t i = 0; i < rows; ++i) {
                T* target = grad_w2 + (row + i) * f.stored_hidden;
                for (std::int64_t j = 0; j < units; ++j) {
                    set(target[stored[j]], sums[i * kPanel + j]);
                }
            }
        }
    };
    scratch.walk.each(weight_tasks + bias_tasks, parallel, run);
}

template <class T, class Activate>
void backward(const ComponentFfnBackward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    const BackwardScratch scratch(problem.ffn, workspace);
    scratch.walk.weights.fill(second_weight<T>(problem.ffn), first_weight<T>(problem.ffn),
                              pack_panel<T>, parallel);
    backward_tokens<T, Activate>(problem, scratch, parallel);
    backward_weights<T>(problem, scratch, parallel);
}

// run<T, Activate>() for the dtype and the activation of the problem.
template <class Run>
void choose(const ComponentFfn& f, const Run& run) {
    const auto choose_activation = [&]<class T>() {
        switch (f.activation) {
            case Activation::silu:
                return run.template operator()<T, Silu>();
            case Activation::relu:
                return run.template operator()<T, Relu>();
            case Activation::gelu:
                return run.template operator()<T, Gelu>();
        }
    };
    if (f.dtype == DType::float32) {
        choose_activation.template operator()<float>();
    } else {
        choose_activation.template operator()<bfloat16>();
    }
}

}  // namespace

std::int64_t component_ffn_forward_scratch(const ComponentFfnForward& problem,
                                           std::int64_t workers) {
    return ForwardScratch(problem.ffn, {nullptr, workers}).arena.used();
}

void component_ffn_forward(const ComponentFfnForward& problem, const Workspace& workspace,
                           const ParallelFor& parallel) {
    choose(problem.ffn,
           [&]<class T, class Activate>() { forward<T, Activate>(problem, workspace, parallel); });
}

std::int64_t component_ffn_backward_scratch(const ComponentFfnBackward& problem,
                                            std::int64_t workers) {
    return BackwardScratch(problem.ffn, {nullptr, workers}).arena.used();
}

void component_ffn_backward(const ComponentFfnBackward& problem, const Workspace& workspace,
                            const ParallelFor& parallel) {
    choose(problem.ffn,
           [&]<class T, class Activate>() { backward<T, Activate>(problem, workspace, parallel); });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
