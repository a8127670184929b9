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
// bfloat16 tensors are widened when they are packed or read; all arithmetic is in float, also where
// the CPU could multiply bfloat16 (AVX-512 BF16 serves for conversions only).
#include "dmao/component_ffn.h"

#include <cstring>

#include "activation.h"
#include "component_ffn_walk.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// --- Forward

struct ForwardScratch {
    Arena arena;
    Walk walk;
    float *bias1, *bias2;

    ForwardScratch(const ComponentFfn& f, const Workspace& workspace)
        : arena(workspace.scratch),
          walk(arena, f, f.tokens, f.in_width, f.out_width, workspace.workers),
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
    scratch.walk.weights.fill(first_weight<T>(f), second_weight<T>(f),
                              pack_panel_transposed<T, float>, parallel);

    scratch.walk.each_tile(
        0, f.tokens, parallel,
        [&](std::int64_t first, std::int64_t rows, const TileBuffers& buffers) {
            const T* x = static_cast<const T*>(f.x) + first * f.in_width;
            T* y = static_cast<T*>(problem.y) + first * f.out_width;
            const float* input = as_float(x, rows * f.in_width, buffers.input);
            float* output = sums_of(y, buffers.output);
            for (std::int64_t row = 0; row < rows; ++row) {
                std::memcpy(output + row * f.out_width, scratch.bias2, f.out_width * sizeof(float));
            }
            walk_chunks(
                scratch.walk.weights, rows, input, buffers.hidden, output,
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

constexpr std::int64_t kBlock = 512;  // tokens whose panels and strips are kept for pass 2
constexpr std::int64_t kBlockPerWorker = 128;
constexpr std::int64_t kGradRows = 192;   // of a weight gradient, per task
constexpr std::int64_t kGradDepth = 128;  // tokens between two visits of these sums
constexpr std::int64_t kStrip = Vec::width == 16 ? 16 : 24;  // columns that pass 2 reads together
constexpr std::int64_t kSumDepth = 16;  // tokens that a bias gradient sums one by one
static_assert(kBlock % kGradDepth == 0 && kBlockPerWorker % kGradDepth == 0);
static_assert(kStrip % kRows == 0 && kStrip % Vec::width == 0 && kGradRows % kStrip == 0);

// Tokens [first, first + count).
struct Block {
    std::int64_t first, count;
};

struct BackwardScratch {
    Arena arena;
    std::int64_t block;  // tokens at a time; a multiple of kGradDepth, so the sums do not show it
    Walk walk;
    // The block's tokens cut the way pass 2 reads them: panels of hidden units, [unit
    // panel][token], and strips of x and grad_y, [strip][token].
    float *activations, *grad_hidden, *x, *grad_y;
    // Sums over tokens: of grad_w1^T and grad_w2, [unit panel][row][kPanel], and of the biases.
    float *sums1, *sums2, *bias_sums1, *bias_sums2;

    BackwardScratch(const ComponentFfn& f, const Workspace& workspace)
        : arena(workspace.scratch),
          block(smaller(round_up(f.tokens, kGradDepth), workspace.workers * kBlockPerWorker < kBlock
                                                            ? kBlock
                                                            : workspace.workers * kBlockPerWorker)),
          walk(arena, f, smaller(block, f.tokens), f.out_width, f.in_width, workspace.workers),
          activations(arena.take(block * padded_columns(f.hidden))),
          grad_hidden(arena.take(block * padded_columns(f.hidden))),
          x(arena.take(block * round_up(f.in_width, kStrip))),
          grad_y(arena.take(block * round_up(f.out_width, kStrip))),
          sums1(arena.take(round_up(f.hidden, kPanel) * f.in_width)),
          sums2(arena.take(round_up(f.hidden, kPanel) * f.out_width)),
          bias_sums1(arena.take(padded_columns(f.hidden))),
          bias_sums2(arena.take(padded_columns(f.out_width))) {}
};

// Cuts `count` rows of `width` columns into strips of kStrip columns, the last of which is padded
// with zeros; a strip has `tokens` rows.
template <class T>
void cut_strips(const T* rows, std::int64_t width, std::int64_t count, std::int64_t tokens,
                float* strips) {
    for (std::int64_t column = 0; column < width; column += kStrip) {
        const std::int64_t columns = smaller(kStrip, width - column);
        float* out = strips + column * tokens;
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

// Pass 1 over a block: fills the panels, the strips and grad_x.
template <class T, class Activate>
void backward_tokens(const ComponentFfnBackward& problem, const BackwardScratch& scratch,
                     const Block& block, const ParallelFor& parallel) {
    const ComponentFfn& f = problem.ffn;
    const Dropout dropout(f.p, f.seed);
    const auto run = [&](std::int64_t first, std::int64_t rows, const TileBuffers& buffers) {
        const T* x = static_cast<const T*>(f.x) + first * f.in_width;
        const T* grad_y = static_cast<const T*>(problem.grad_y) + first * f.out_width;
        T* grad_x = static_cast<T*>(problem.grad_x) + first * f.in_width;
        const std::int64_t place = first - block.first;
        cut_strips(x, f.in_width, rows, block.count, scratch.x + place * kStrip);
        cut_strips(grad_y, f.out_width, rows, block.count, scratch.grad_y + place * kStrip);
        const float* input = as_float(grad_y, rows * f.out_width, buffers.input);
        float* output = sums_of(grad_x, buffers.output);
        std::memset(output, 0, rows * f.in_width * sizeof(float));
        walk_chunks(scratch.walk.weights, rows, input, buffers.hidden, output,
                    [&](std::int64_t unit, std::int64_t units, std::int64_t stride) {
                        const T* kept = static_cast<const T*>(problem.pre_activation) + unit;
                        float* factors = dropout.active() ? buffers.factors : nullptr;
                        for (std::int64_t row = 0; row < rows; ++row) {
                            const std::int64_t token = first + row;
                            if (factors != nullptr) {
                                dropout_factors(dropout, f.units, static_cast<std::uint32_t>(token),
                                                unit, units, factors);
                            }
                            differentiate<T, Activate>(buffers.hidden + row * stride,
                                                       kept + token * f.hidden, factors, units,
                                                       block.count, place + row,
                                                       scratch.activations + unit * block.count,
                                                       scratch.grad_hidden + unit * block.count);
                        }
                    });
        finish(grad_x, rows * f.in_width, output);
    };
    scratch.walk.each_tile(block.first, block.count, parallel, run);
}

// sums[i, j] += the sum over tokens of strips[token, i] * panel[token, j], rows x columns of them.
void add_products(const float* strips, std::int64_t rows, const float* panel, std::int64_t columns,
                  std::int64_t tokens, float* sums) {
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

// The sum over tokens of the first count columns, by halves: less rounding than one by one.
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

// sums[column] += the sum over tokens of values[token, column], for count columns.
void add_tokens(const float* values, std::int64_t stride, std::int64_t tokens, std::int64_t count,
                float* sums) {
    for (std::int64_t column = 0; column < count; column += Vec::width) {
        const int n = static_cast<int>(smaller(Vec::width, count - column));
        Vec sum = load(sums + column, n);
        for (std::int64_t token = 0; token < tokens; token += kGradDepth) {
            const std::int64_t depth = smaller(kGradDepth, tokens - token);
            sum = sum + sum_halves(values + token * stride + column, stride, depth, n);
        }
        store(sums + column, sum, n);
    }
}

// Pass 2 over a block: adds its part of the weight gradients to the sums. One task per panel of
// hidden units and group of rows.
void backward_weights(const ComponentFfn& f, const BackwardScratch& scratch, const Block& block,
                      const ParallelFor& parallel) {
    // At least one, because the first also sums the bias.
    const std::int64_t first_tasks = f.in_width == 0 ? 1 : divide_up(f.in_width, kGradRows);
    const std::int64_t panels = divide_up(f.hidden, kPanel);
    const std::int64_t second_tasks = divide_up(f.out_width, kGradRows);
    const std::int64_t bias_tasks = divide_up(f.out_width, kStrip);
    const std::int64_t tokens = block.count;

    const auto run_first = [&](std::int64_t panel, std::int64_t row) {
        const std::int64_t unit = panel * kPanel, units = smaller(kPanel, f.hidden - unit);
        const float* grad_hidden = scratch.grad_hidden + unit * tokens;
        add_products(scratch.x + row * tokens, smaller(kGradRows, f.in_width - row), grad_hidden,
                     units, tokens, scratch.sums1 + unit * f.in_width + row * kPanel);
        if (row == 0) {
            add_tokens(grad_hidden, padded_columns(units), tokens, units,
                       scratch.bias_sums1 + unit);
        }
    };
    const auto run_second = [&](std::int64_t panel, std::int64_t row) {
        const std::int64_t unit = panel * kPanel, units = smaller(kPanel, f.hidden - unit);
        add_products(scratch.grad_y + row * tokens, smaller(kGradRows, f.out_width - row),
                     scratch.activations + unit * tokens, units, tokens,
                     scratch.sums2 + unit * f.out_width + row * kPanel);
    };
    const std::int64_t first_end = panels * first_tasks;
    const std::int64_t second_end = first_end + panels * second_tasks;
    parallel(second_end + bias_tasks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t task = begin; task < end; ++task) {
            if (task < first_end) {
                run_first(task / first_tasks, task % first_tasks * kGradRows);
            } else if (task < second_end) {
                const std::int64_t i = task - first_end;
                run_second(i / second_tasks, i % second_tasks * kGradRows);
            } else {
                const std::int64_t column = (task - second_end) * kStrip;
                add_tokens(scratch.grad_y + column * tokens, kStrip, tokens,
                           smaller(kStrip, f.out_width - column), scratch.bias_sums2 + column);
            }
        }
    });
}

// The sums of a panel of hidden units into the gradients, at the stored place of each unit.
template <class T>
void store_weight_gradients(const ComponentFfnBackward& problem, const BackwardScratch& scratch,
                            std::int64_t unit) {
    const ComponentFfn& f = problem.ffn;
    T *grad_w1 = static_cast<T*>(problem.grad_w1), *grad_w2 = static_cast<T*>(problem.grad_w2);
    T* grad_b1 = static_cast<T*>(problem.grad_b1);
    const std::int64_t units = smaller(kPanel, f.hidden - unit);
    const std::int32_t* stored = f.units + unit;
    const float* sums1 = scratch.sums1 + unit * f.in_width;
    const float* sums2 = scratch.sums2 + unit * f.out_width;
    for (std::int64_t j = 0; j < units; ++j) {
        T* target = grad_w1 + stored[j] * f.in_width;
        for (std::int64_t i = 0; i < f.in_width; ++i) set(target[i], sums1[i * kPanel + j]);
        if (grad_b1 != nullptr) set(grad_b1[stored[j]], scratch.bias_sums1[unit + j]);
    }
    for (std::int64_t i = 0; i < f.out_width; ++i) {
        T* target = grad_w2 + i * f.stored_hidden;
        for (std::int64_t j = 0; j < units; ++j) set(target[stored[j]], sums2[i * kPanel + j]);
    }
}

template <class T, class Activate>
void backward(const ComponentFfnBackward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    const ComponentFfn& f = problem.ffn;
    const BackwardScratch scratch(f, workspace);
    scratch.walk.weights.fill(second_weight<T>(f), first_weight<T>(f), pack_panel<T, float>,
                              parallel);
    const std::int64_t panels = divide_up(f.hidden, kPanel);
    parallel(panels, 1, [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t count = (end - begin) * kPanel, first = begin * kPanel;
        std::memset(scratch.sums1 + first * f.in_width, 0, count * f.in_width * sizeof(float));
        std::memset(scratch.sums2 + first * f.out_width, 0, count * f.out_width * sizeof(float));
    });
    std::memset(scratch.bias_sums1, 0, f.hidden * sizeof(float));
    std::memset(scratch.bias_sums2, 0, f.out_width * sizeof(float));

    for (std::int64_t first = 0; first < f.tokens; first += scratch.block) {
        const Block block{first, smaller(scratch.block, f.tokens - first)};
        backward_tokens<T, Activate>(problem, scratch, block, parallel);
        backward_weights(f, scratch, block, parallel);
    }

    parallel(panels, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            store_weight_gradients<T>(problem, scratch, i * kPanel);
        }
    });
    T* grad_b2 = static_cast<T*>(problem.grad_b2);
    for (std::int64_t i = 0; grad_b2 != nullptr && i < f.out_width; ++i) {
        set(grad_b2[i], scratch.bias_sums2[i]);
    }
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
            case Activation::none:
                return;  // without one the two products would be one: not in the contract
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
