// The feed-forward layer over its live hidden units, without a hidden tensor in memory.
//
// Floor: with T tokens, H live units, d = in_width = out_width, the multiply-adds are
//     forward   4 T d H flops,   backward   8 T d H flops
// at the FMA peak of the core(s); reading x and writing y, 8 T d bytes, hides behind them. The
// backward pass recomputes no product: the forward one keeps the pre-activations (T H values).
// Beyond the products there are, per hidden unit and token, two exponentials, two transpositions
// and 12 bytes to and from memory.
//
// Forward: tiles of tokens go through the hidden units chunk by chunk. A tile, its chunk of hidden
// values and its output stay in L2; each packed weight is read once per tile (from L3, asked for
// ahead) and used for all of the tile's tokens. Tokens are packed as strips, which the products
// read faster than rows. Sums start from the bias.
//
// Backward: pass 1, the same walk mirrored: grad_y W2 -> gradient of the hidden units -> W1 ->
// grad_x. On its way it writes the hidden gradients and the activations as packed panels, so that
// pass 2 is again one product of that kind per panel: x^T grad_hidden = grad_w1^T and
// grad_y^T activations = grad_w2. A sum over tokens belongs to one task and runs in a fixed order,
// so the bits depend neither on the number of threads nor on the tile size, and whoever is free
// takes the next tile or task. What no gradient that is wanted needs is left out.
//
// Products take Operand<T>: bfloat16 where the instruction set multiplies it, then hidden values
// and their gradients are rounded to it as PyTorch rounds them; float elsewhere. Sums are in float.
#include "dmao/component_ffn.h"

#include <cstring>

#include "activation.h"
#include "component_ffn_walk.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// --- Forward

template <class T>
struct ForwardScratch {
    Arena arena;
    Walk<T> walk;
    float *bias1, *bias2;

    ForwardScratch(const ComponentFfn& f, const Workspace& workspace)
        : arena(workspace.scratch),
          walk(arena, f, f.tokens, f.in_width, f.out_width, workspace.workers),
          bias1(arena.take(padded_columns(f.hidden))),
          bias2(arena.take(padded_columns(f.out_width))) {}
};

// Some hidden units of one token: keeps the pre-activations (or not), activation, dropout (factors
// may be null).
template <class Activate, class T, class E>
void activate(const float* sums, const float* factors, std::int64_t units, T* kept,
              std::int64_t ahead, E* hidden) {
    for (std::int64_t i = 0; i < units; i += Vec::width) {
        const Vec h = load(sums + i);
        if (kept != nullptr) {
            store_some(kept + i, h, units - i);
            prefetch_to_write(kept + kRows * ahead + i);
        }
        Vec value = Activate::value(h);
        if (factors != nullptr) value = value * load(factors + i);
        store(hidden + i, value);
    }
}

template <class T, class Activate>
void forward(const ComponentFfnForward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    using E = Operand<T>;
    const ComponentFfn& f = problem.ffn;
    const ForwardScratch<T> scratch(f, workspace);
    const Weights<E>& weights = scratch.walk.weights;
    const Dropout dropout(f.p, f.seed);
    gather_bias(static_cast<const T*>(f.b1), f.units, f.hidden, scratch.bias1);
    gather_bias(static_cast<const T*>(problem.b2), nullptr, f.out_width, scratch.bias2);
    weights.fill(first_weight<T>(f), second_weight<T>(f), true, pack_panel_transposed<T, E>,
                 parallel);

    const auto run = [&](std::int64_t first, std::int64_t rows, const TileBuffers<T>& buffers) {
        T* y = static_cast<T*>(problem.y) + first * f.out_width;
        float* output = sums_of(y, buffers.output);
        pack_tile(static_cast<const T*>(f.x) + first * f.in_width, f.in_width, rows, buffers.input);
        weights.each_chunk([&](std::int64_t unit, std::int64_t units, std::int64_t stride) {
            multiply<Order::strips>(rows, units, f.in_width, buffers.input,
                                    kRows * padded_depth<E>(f.in_width), weights.inward_chunk(unit),
                                    buffers.sums, stride, scratch.bias1 + unit);
            const std::int64_t hidden_stride = stride * kPerWord<E>;
            each_strip(rows, [&](std::int64_t row, std::int64_t count) {
                for (std::int64_t i = 0; i < units; i += kGroup) {
                    for (std::int64_t q = 0; q < count; ++q) {
                        const std::int64_t token = first + row + q;
                        alignas(64) float buffer[kGroup];
                        const std::int64_t group = smaller(kGroup, units - i);
                        const float* factors =
                            dropout_factors(dropout, f.units, token, unit + i, group, buffer);
                        T* kept = static_cast<T*>(problem.pre_activation);
                        if (kept != nullptr) kept += token * f.hidden + unit + i;
                        activate<Activate>(buffers.sums + (row + q) * stride + i, factors, group,
                                           kept, f.hidden, buffers.rows + q * stride + i);
                    }
                }
                pack_strip(buffers.rows, stride, units, count,
                           buffers.hidden + row * hidden_stride);
            });
            multiply<Order::strips>(rows, f.out_width, units, buffers.hidden, kRows * hidden_stride,
                                    weights.outward_chunk(unit), output, f.out_width,
                                    unit == 0 ? scratch.bias2 : nullptr);
        });
        finish(y, f.out_width, rows, f.out_width, output, f.out_width);
    };
    scratch.walk.each_tile(0, f.tokens, parallel, run);
}

// --- Backward

// Tokens that a weight gradient sums up between two additions: whole strips.
constexpr std::int64_t kSumTokens = kSpan / kRows * kRows;
constexpr std::int64_t kBlockPerWorker = 128;  // tokens whose panels and strips are kept for pass 2
constexpr std::int64_t kGradRows = 192;  // of a weight gradient, per task: their strips fit in L2
constexpr std::int64_t kTasks = 8;       // of these that a worker takes at a time
static_assert(kGradRows % kRows == 0);

// Tokens [first, first + count).
struct Block {
    std::int64_t first, count;
};

// Which products the gradients that are wanted need.
struct Needs {
    bool x, w1, b1, w2, b2, hidden;

    explicit Needs(const ComponentFfnBackward& problem)
        : x(problem.grad_x != nullptr),
          w1(problem.grad_w1 != nullptr),
          b1(problem.grad_b1 != nullptr),
          w2(problem.grad_w2 != nullptr),
          b2(problem.grad_b2 != nullptr),
          hidden(x || w1 || b1) {}
};

template <class T>
struct BackwardScratch {
    using E = Operand<T>;
    Arena arena;
    std::int64_t block;  // tokens at a time; a multiple of kSumTokens, so the sums do not show it
    Walk<T> walk;
    float* zeros;  // what sums start from
    // The block's tokens cut the way pass 2 reads them: panels of hidden units, [unit
    // panel][token], and strips of kRows columns of x and grad_y, [strip][token].
    E *activations, *grad_hidden, *x, *grad_y;
    // Sums over tokens: of grad_w1^T and grad_w2, [unit panel][row][kPanel], and of the biases.
    float *sums1, *sums2, *bias_sums1, *bias_sums2;

    BackwardScratch(const ComponentFfn& f, const Workspace& workspace)
        : arena(workspace.scratch),
          block(smaller(round_up(f.tokens, kSumTokens),
                        round_up(workspace.workers * kBlockPerWorker, kSumTokens))),
          walk(arena, f, smaller(block, f.tokens), f.out_width, f.in_width, workspace.workers),
          zeros(arena.take(zero_count(f))),
          activations(take<E>(arena, block * padded_columns(f.hidden))),
          grad_hidden(take<E>(arena, block * padded_columns(f.hidden))),
          x(take<E>(arena, block * round_up(f.in_width, kRows))),
          grad_y(take<E>(arena, block * round_up(f.out_width, kRows))),
          sums1(arena.take(round_up(f.hidden, kPanel) * f.in_width)),
          sums2(arena.take(round_up(f.hidden, kPanel) * f.out_width)),
          bias_sums1(arena.take(padded_columns(f.hidden))),
          bias_sums2(arena.take(padded_columns(f.out_width))) {}

    std::int64_t zero_count(const ComponentFfn& f) const {
        const std::int64_t in = padded_columns(f.in_width), least = kPanel;
        const std::int64_t chunk = walk.weights.chunk > least ? walk.weights.chunk : least;
        return in > chunk ? in : chunk;
    }
};

// Cuts `count` rows of `width` columns into strips of kRows columns, words as in Order::column; a
// strip has `tokens` rows. What pads the last strip is not written.
template <class E, class T>
void cut_strips(const T* rows, std::int64_t width, std::int64_t count, std::int64_t tokens,
                E* strips) {
    constexpr std::int64_t per = kPerWord<E>, columns = 8 * kRows;
    for (std::int64_t column = 0; column < width; column += columns) {
        const std::int64_t n = smaller(columns, width - column);
        for (std::int64_t i = 0; i < count; i += per) {
            alignas(64) E words[round_up(columns, Vec::width) * per];
            pack_columns(rows + i * width + column, width, smaller(per, count - i), n, words,
                         padded_columns(n));
            E* out = strips + column * tokens + i * kRows;
            for (std::int64_t j = 0; j < n; j += kRows, out += kRows * tokens) {
                std::memcpy(out, words + j * per, kRows * per * sizeof(E));
            }
        }
    }
}

// Where the panels of a block of tokens, [unit panel][token], have the words of a unit.
struct PanelPlaces {
    std::int64_t hidden, tokens;

    // Of the last `per` tokens that begin with this one.
    std::int64_t operator()(std::int64_t unit, std::int64_t token, std::int64_t per) const {
        const std::int64_t first = unit / kPanel * kPanel;
        return first * tokens + token * panel_columns(hidden, first) + (unit - first) * per;
    }
};

// Pass 1 over a block: fills the panels, the strips and grad_x.
template <class T, class Activate>
struct BackwardTokens {
    using E = Operand<T>;
    const ComponentFfnBackward& problem;
    const BackwardScratch<T>& scratch;
    const Block& block;
    const Needs needs{problem};
    const Dropout dropout{problem.ffn.p, problem.ffn.seed};
    const PanelPlaces places{problem.ffn.hidden, padded_depth<E>(block.count)};

    // Up to kGroup units of the tokens of a strip: from the gradient of the dropped-out
    // activations, in `sums`, to the gradient of the pre-activations. `hidden`: rows for the second
    // product. The next strip's lines are asked for, as they are too far apart to be foreseen by
    // the hardware.
    void differentiate(std::int64_t token, std::int64_t tokens, std::int64_t unit,
                       std::int64_t units, const float* sums, std::int64_t stride,
                       E* hidden) const {
        constexpr int per = kPerWord<E>;
        const ComponentFfn& f = problem.ffn;
        const T* kept = static_cast<const T*>(problem.pre_activation) + token * f.hidden + unit;
        alignas(64) float buffer[kRows][kGroup];
        const float* factors[kRows];
        for (std::int64_t q = 0; q < tokens; ++q) {
            factors[q] = dropout_factors(dropout, f.units, token + q, unit, units, buffer[q]);
        }
        for (std::int64_t i = 0; i < units; i += Vec::width) {
            for (std::int64_t word = 0; word < tokens; word += per) {
                decltype(Vec::v) values[2] = {}, grads[2] = {};
                for (int r = 0; r < per && word + r < tokens; ++r) {
                    const std::int64_t q = word + r;
                    const Vec h = load_some(kept + q * f.hidden + i, units - i);
                    auto [value, slope] = Activate::value_and_slope(h);
                    Vec grad = needs.hidden ? load(sums + q * stride + i) * slope : Vec(0.0f);
                    if (factors[q] != nullptr) {
                        const Vec factor = load(factors[q] + i);
                        value = value * factor;
                        grad = grad * factor;
                    }
                    values[r] = value.v;
                    grads[r] = grad.v;
                    store(hidden + q * stride + i, grad);
                    prefetch(kept + (q + kRows) * f.hidden + i);
                }
                const std::int64_t place = places(unit + i, token + word - block.first, per);
                const std::int64_t ahead = place + kRows * panel_columns(f.hidden, unit + i);
                prefetch_to_write(scratch.grad_hidden + ahead);
                prefetch_to_write(scratch.activations + ahead);
                store_words(scratch.grad_hidden + place, Vec(grads[0]), Vec(grads[1]));
                store_words(scratch.activations + place, Vec(values[0]), Vec(values[1]));
            }
        }
    }

    void operator()(std::int64_t first, std::int64_t rows, const TileBuffers<T>& buffers) const {
        constexpr int per = kPerWord<E>;
        const ComponentFfn& f = problem.ffn;
        const Weights<E>& weights = scratch.walk.weights;
        const T* x = static_cast<const T*>(f.x) + first * f.in_width;
        const T* grad_y = static_cast<const T*>(problem.grad_y) + first * f.out_width;
        const std::int64_t place = (first - block.first) * kRows;
        if (needs.w1) cut_strips<E>(x, f.in_width, rows, places.tokens, scratch.x + place);
        if (needs.w2 || needs.b2) {
            cut_strips<E>(grad_y, f.out_width, rows, places.tokens, scratch.grad_y + place);
        }
        T* grad_x = static_cast<T*>(problem.grad_x);
        if (needs.x) grad_x += first * f.in_width;
        float* output = sums_of(grad_x, buffers.output);
        if (!needs.hidden && !needs.w2) return;
        if (needs.hidden) pack_tile(grad_y, f.out_width, rows, buffers.input);
        weights.each_chunk([&](std::int64_t unit, std::int64_t units, std::int64_t stride) {
            if (needs.hidden) {
                multiply<Order::strips>(
                    rows, units, f.out_width, buffers.input, kRows * padded_depth<E>(f.out_width),
                    weights.inward_chunk(unit), buffers.sums, stride, scratch.zeros);
            }
            each_strip(rows, [&](std::int64_t row, std::int64_t count) {
                for (std::int64_t i = 0; i < units; i += kGroup) {
                    differentiate(first + row, count, unit + i, smaller(kGroup, units - i),
                                  buffers.sums + row * stride + i, stride, buffers.rows + i);
                }
                if (needs.x) {
                    pack_strip(buffers.rows, stride, units, count,
                               buffers.hidden + row * stride * per);
                }
            });
            if (needs.x) {
                multiply<Order::strips>(rows, f.in_width, units, buffers.hidden,
                                        kRows * stride * per, weights.outward_chunk(unit), output,
                                        f.in_width, unit == 0 ? scratch.zeros : nullptr);
            }
        });
        if (needs.x) finish(grad_x, f.in_width, rows, f.in_width, output, f.in_width);
    }
};

// Pass 2 over a block: adds its part of the weight gradients to the sums. A task is a panel of
// hidden units and a group of rows.
template <class T>
struct BackwardWeights {
    using E = Operand<T>;
    const ComponentFfnBackward& problem;
    const BackwardScratch<T>& scratch;
    const Block& block;
    const std::int64_t tokens = padded_depth<E>(block.count);

    // What the sums start from at the block's token.
    const float* start(std::int64_t token) const {
        return block.first + token == 0 ? scratch.zeros : nullptr;
    }

    // sums[i, j] += the sum of strips[i] * panel[j] over kSumTokens tokens from `token` on, for up
    // to kGradRows of the `width` rows of a gradient.
    void add_products(const E* strips, std::int64_t row, std::int64_t width, const E* panels,
                      std::int64_t unit, std::int64_t token, float* sums) const {
        const std::int64_t units = smaller(kPanel, problem.ffn.hidden - unit);
        const std::int64_t depth = smaller(kSumTokens, block.count - token);
        const E* panel = panels + unit * tokens + token * padded_columns(units);
        multiply<Order::strips>(smaller(kGradRows, width - row), units, depth,
                                strips + row * tokens + token * kRows, kRows * tokens, panel,
                                sums + unit * width + row * kPanel, kPanel, start(token));
    }

    // sums[column] += the sum over kSumTokens tokens from `token` on of `count` columns of strips
    // or of a panel, `width` columns wide.
    void add_tokens(const E* values, std::int64_t width, std::int64_t count, std::int64_t token,
                    float* sums) const {
        const std::int64_t depth = smaller(kSumTokens, block.count - token);
        for (std::int64_t column = 0; column < count; column += Vec::width) {
            const int n = static_cast<int>(smaller(Vec::width, count - column));
            const Vec sum = sum_words(values + token * width + column * kPerWord<E>,
                                      width * kPerWord<E>, divide_up(depth, kPerWord<E>), n);
            const float* before = start(token);
            store(sums + column, load(before == nullptr ? sums + column : before, n) + sum, n);
        }
    }

    void first(std::int64_t row, std::int64_t unit, std::int64_t token) const {
        const ComponentFfn& f = problem.ffn;
        if (problem.grad_w1 != nullptr) {
            add_products(scratch.x, row, f.in_width, scratch.grad_hidden, unit, token,
                         scratch.sums1);
        }
        if (problem.grad_b1 != nullptr && row == 0) {
            const std::int64_t units = smaller(kPanel, f.hidden - unit);
            add_tokens(scratch.grad_hidden + unit * tokens, padded_columns(units), units, token,
                       scratch.bias_sums1 + unit);
        }
    }

    void second(std::int64_t row, std::int64_t unit, std::int64_t token) const {
        const ComponentFfn& f = problem.ffn;
        if (problem.grad_w2 != nullptr) {
            add_products(scratch.grad_y, row, f.out_width, scratch.activations, unit, token,
                         scratch.sums2);
        }
        if (problem.grad_b2 == nullptr || unit != 0) return;
        for (const std::int64_t end = smaller(row + kGradRows, f.out_width); row < end;
             row += kRows) {
            add_tokens(scratch.grad_y + row * tokens, kRows, smaller(kRows, end - row), token,
                       scratch.bias_sums2 + row);
        }
    }

    // Rows go outside of panels, so that their strips stay in L2.
    void operator()(const ParallelFor& parallel) const {
        const ComponentFfn& f = problem.ffn;
        const std::int64_t panels1 = divide_up(f.hidden, kPanel);
        const std::int64_t panels2 = panels1 == 0 ? 1 : panels1;  // one for the bias
        const std::int64_t groups1 = f.in_width == 0 ? 1 : divide_up(f.in_width, kGradRows);
        const std::int64_t groups2 = divide_up(f.out_width, kGradRows);
        const std::int64_t tasks1 = groups1 * panels1;
        const std::int64_t tasks = tasks1 + groups2 * panels2;
        const auto run = [&](std::int64_t i) {
            std::int64_t token = 0;
            do {
                const std::int64_t end = smaller((i + 1) * kTasks, tasks);
                for (std::int64_t task = i * kTasks; task < end; ++task) {
                    if (task < tasks1) {
                        first(task / panels1 * kGradRows, task % panels1 * kPanel, token);
                    } else {
                        const std::int64_t i = task - tasks1;
                        second(i / panels2 * kGradRows, i % panels2 * kPanel, token);
                    }
                }
                token += kSumTokens;
            } while (token < block.count);
        };
        parallel.each(divide_up(tasks, kTasks), scratch.walk.workers, run);
    }
};

// target[stored[j], i] = sums[i, j] for the units j < count of a panel and all i < width.
template <class T>
void store_transposed(const float* sums, std::int64_t width, const std::int32_t* stored,
                      std::int64_t count, T* target) {
    constexpr int w = Vec::width;
    for (std::int64_t j = 0; j < count; j += w) {
        for (std::int64_t i = 0; i < width; i += w) {
            decltype(Vec::v) rows[w];
            for (int q = 0; q < w; ++q) {
                rows[q] = (i + q < width ? load(sums + (i + q) * kPanel + j) : Vec(0.0f)).v;
            }
            transpose(rows);
            for (int q = 0; q < w && j + q < count; ++q) {
                store_some(target + stored[j + q] * width + i, Vec(rows[q]), width - i);
            }
        }
    }
}

// target[i * stride + stored[j]] = sums[i, j].
template <class T>
void store_columns(const float* sums, std::int64_t width, const std::int32_t* stored,
                   std::int64_t count, std::int64_t stride, T* target) {
    const bool run = stored[count - 1] - stored[0] == count - 1;
    for (std::int64_t i = 0; i < width; ++i, sums += kPanel, target += stride) {
        if (run) {
            for (std::int64_t j = 0; j < count; j += Vec::width) {
                store_some(target + stored[0] + j, load(sums + j), count - j);
            }
        } else {
            for (std::int64_t j = 0; j < count; ++j) set(target[stored[j]], sums[j]);
        }
    }
}

// The sums of a panel of hidden units into the gradients, at the stored place of each unit.
template <class T>
void store_weight_gradients(const ComponentFfnBackward& problem, const BackwardScratch<T>& scratch,
                            std::int64_t unit) {
    const ComponentFfn& f = problem.ffn;
    T *grad_w1 = static_cast<T*>(problem.grad_w1), *grad_w2 = static_cast<T*>(problem.grad_w2);
    T* grad_b1 = static_cast<T*>(problem.grad_b1);
    const std::int64_t units = smaller(kPanel, f.hidden - unit);
    const std::int32_t* stored = f.units + unit;
    if (grad_w1 != nullptr) {
        store_transposed(scratch.sums1 + unit * f.in_width, f.in_width, stored, units, grad_w1);
    }
    for (std::int64_t j = 0; grad_b1 != nullptr && j < units; ++j) {
        set(grad_b1[stored[j]], scratch.bias_sums1[unit + j]);
    }
    if (grad_w2 != nullptr) {
        store_columns(scratch.sums2 + unit * f.out_width, f.out_width, stored, units,
                      f.stored_hidden, grad_w2);
    }
}

template <class T, class Activate>
void backward(const ComponentFfnBackward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    using E = Operand<T>;
    const ComponentFfn& f = problem.ffn;
    const BackwardScratch<T> scratch(f, workspace);
    std::memset(scratch.zeros, 0, scratch.zero_count(f) * sizeof(float));
    const Needs needs(problem);
    if (needs.hidden) {
        scratch.walk.weights.fill(second_weight<T>(f), first_weight<T>(f), needs.x,
                                  pack_panel<T, E>, parallel);
    }
    std::int64_t first = 0;
    do {
        const Block block{first, smaller(scratch.block, f.tokens - first)};
        scratch.walk.each_tile(block.first, block.count, parallel,
                               BackwardTokens<T, Activate>{problem, scratch, block});
        BackwardWeights<T>{problem, scratch, block}(parallel);
        first += scratch.block;
    } while (first < f.tokens);

    const std::int64_t panels = divide_up(f.hidden, kPanel);
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

template <class Run>
void choose(const ComponentFfn& f, const Run& run) {
    // Without an activation the two products would be one: that is not in the contract.
    choose<Silu, Relu, Gelu>(f.dtype, f.activation, run);
}

}  // namespace

std::int64_t component_ffn_forward_scratch(const ComponentFfnForward& problem,
                                           std::int64_t workers) {
    std::int64_t used = 0;
    choose(problem.ffn, [&]<class T, class>() {
        used = ForwardScratch<T>(problem.ffn, {nullptr, workers}).arena.used();
    });
    return used;
}

void component_ffn_forward(const ComponentFfnForward& problem, const Workspace& workspace,
                           const ParallelFor& parallel) {
    choose(problem.ffn,
           [&]<class T, class Activate>() { forward<T, Activate>(problem, workspace, parallel); });
}

std::int64_t component_ffn_backward_scratch(const ComponentFfnBackward& problem,
                                            std::int64_t workers) {
    std::int64_t used = 0;
    choose(problem.ffn, [&]<class T, class>() {
        used = BackwardScratch<T>(problem.ffn, {nullptr, workers}).arena.used();
    });
    return used;
}

void component_ffn_backward(const ComponentFfnBackward& problem, const Workspace& workspace,
                            const ParallelFor& parallel) {
    choose(problem.ffn,
           [&]<class T, class Activate>() { backward<T, Activate>(problem, workspace, parallel); });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
