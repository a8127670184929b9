// A linear layer over the live pieces of its weight, forward and backward.
//
// Floor: with T tokens and n live elements of the weight, each of y, grad_x and grad_w takes
// 2 T n flops at the FMA peak of the core(s). At low density memory takes over: every product reads
// or writes all of x and y once.
//
// y and grad_x: each live piece is packed once, as a B operand of gemm.h. A tile of tokens stays in
// L2 while the groups of output columns pass: a group's sums start from the bias, take in all of
// its pieces and pass through the activation before the next group comes. They form where the
// result goes, those of bfloat16 and glu in a small buffer. Few tokens read the weight as it is.
//
// grad_w: every worker has its share of the live blocks and goes through the tokens in chunks, for
// which it packs, into its second-level cache, what its blocks need: of x as panels (B), of the
// gradient of the pre-activations as strips (A along its columns), a block of columns at a time.
// Columns of x are packed by all workers that need them, which takes less than to wait for each
// other. A sum over tokens is cut at fixed places and runs in a fixed order, so that the bits
// depend neither on the number of threads nor on the size of blocks and tiles.
#include "dmao/masked_linear.h"

#include <cstring>

#include "activation.h"
#include "gemm.h"
#include "masked_linear_sweep.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// --- Forward

constexpr std::int64_t kFewTokens = 16;  // for which packing w would take longer than y itself
static_assert(kFewTokens <= kSmallestTile);

struct Glu {
    static constexpr Activation kind = Activation::glu;
};

template <class Activate>
constexpr bool kGated = false;
template <>
constexpr bool kGated<Glu> = true;

template <class Activate>
constexpr bool kIdentity = false;
template <>
constexpr bool kIdentity<Identity> = true;

// Columns of y.
template <class Activate>
std::int64_t result_width(const MaskedLinear& f) {
    return kGated<Activate> ? f.out_width / 2 : f.out_width;
}

template <class E, class Activate>
struct ForwardScratch {
    Arena arena;
    Sweep<E> sweep;

    ForwardScratch(const MaskedLinearForward& problem, const Workspace& workspace)
        : arena(workspace.scratch),
          sweep(arena, problem.by_rows, problem.linear.tokens, problem.linear.in_width,
                result_width<Activate>(problem.linear), kGated<Activate>, workspace.workers) {}
};

// One token: the pre-activations, in float, into y and (or null) `kept`; gates come `half` behind.
template <class Activate, class T>
void activate(const float* sums, const float* gates, std::int64_t count, std::int64_t half, T* y,
              T* kept) {
    if (kept != nullptr) {
        store_row(sums, count, kept);
        if constexpr (kGated<Activate>) store_row(gates, count, kept + half);
    }
    if constexpr (kIdentity<Activate>) {
        store_row(sums, count, y);
    } else {
        for (std::int64_t i = 0; i < count; i += Vec::width) {
            const std::int64_t rest = count - i;
            const Vec h = load_some(sums + i, rest);
            if constexpr (kGated<Activate>) {
                store_some(y + i, h * sigmoid(load_some(gates + i, rest)), rest);
            } else {
                store_some(y + i, Activate::value(h), rest);
            }
        }
    }
}

// sums[i, j] += x[i] . w[j] over `depth` elements, for up to 2 tokens i and 4 outputs j.
template <class T>
void add_dots(const Rows<T>& x, std::int64_t tokens, const Rows<T>& w, std::int64_t outputs,
              std::int64_t depth, float* sums, std::int64_t stride) {
    constexpr int kTokens = 2, kOutputs = 4;
    const T *left[kTokens], *right[kOutputs];
    for (int i = 0; i < kTokens; ++i) left[i] = x[smaller(i, tokens - 1)];
    for (int j = 0; j < kOutputs; ++j) right[j] = w[smaller(j, outputs - 1)];
    decltype(Vec::v) dots[kTokens][kOutputs];
    for (int i = 0; i < kTokens; ++i) {
        for (int j = 0; j < kOutputs; ++j) dots[i][j] = Vec(0.0f).v;
    }
    const auto add = [&](std::int64_t k, std::int64_t count) {
#pragma GCC unroll 4
        for (int j = 0; j < kOutputs; ++j) {
            const Vec b = load_some(right[j] + k, count);
#pragma GCC unroll 2
            for (int i = 0; i < kTokens; ++i) {
                dots[i][j] = fma(load_some(left[i] + k, count), b, Vec(dots[i][j])).v;
            }
        }
    };
    std::int64_t k = 0;
    for (; k + Vec::width <= depth; k += Vec::width) add(k, Vec::width);
    if (k < depth) add(k, depth - k);
    for (std::int64_t i = 0; i < tokens && i < kTokens; ++i) {
        for (std::int64_t j = 0; j < outputs && j < kOutputs; ++j) {
            sums[i * stride + j] += sum(Vec(dots[i][j]));
        }
    }
}

// The sums of a group, for few tokens, from the weight as it is.
template <class T>
void multiply_few(const Sweep<Operand<T>>& sweep, const OutputGroup& group, const Rows<T>& x,
                  std::int64_t tokens, const Rows<T>& w, float* sums) {
    std::int32_t last = -1;
    for (std::int64_t i = group.begin; i < group.end; ++i) {
        const LivePiece& piece = sweep.live.pieces[i];
        float* out = sums + sweep.column(piece) - group.first;
        for (std::int64_t token = 0; token < tokens && piece.output != last; ++token) {
            std::memcpy(out + token * sweep.stride, sweep.start + piece.output,
                        piece.outputs * sizeof(float));
        }
        last = piece.output;
        for (std::int64_t j = 0; j < piece.outputs; j += 4) {
            const Rows<T> right{w[piece.output + j] + piece.input, w.stride};
            for (std::int64_t token = 0; token < tokens; token += 2) {
                const Rows<T> left{x[token] + piece.input, x.stride};
                add_dots(left, tokens - token, right, piece.outputs - j, piece.inputs,
                         out + token * sweep.stride + j, sweep.stride);
            }
        }
    }
}

template <class T, class Activate>
void forward(const MaskedLinearForward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const MaskedLinear& f = problem.linear;
    const ForwardScratch<Operand<T>, Activate> scratch(problem, workspace);
    const Sweep<Operand<T>>& sweep = scratch.sweep;
    using Buffers = typename Sweep<Operand<T>>::Buffers;
    const LivePieces& live = problem.by_rows;
    const T* b = static_cast<const T*>(problem.b);
    for (std::int64_t i = 0; i < f.out_width; ++i) {
        sweep.start[i] = b == nullptr ? 0.0f : to_float(b[i]);
    }
    const Rows<T> x{static_cast<const T*>(f.x), f.x_stride};
    const Rows<T> w{static_cast<const T*>(f.w), f.w_stride};
    T *y = static_cast<T*>(problem.y), *kept = static_cast<T*>(problem.pre_activation);
    const auto finish = [&](std::int64_t token, const OutputGroup& group, const float* sums) {
        T* kept_row = kept == nullptr ? nullptr : kept + token * f.out_width + group.first;
        activate<Activate>(sums, sums + sweep.gates, group.count, sweep.half,
                           y + token * sweep.half + group.first, kept_row);
    };
    if (f.tokens <= kFewTokens) {
        sweep.each_task(live.group_count, parallel,
                        [&](std::int64_t begin, std::int64_t end, const Buffers& own) {
                            for (std::int64_t i = begin; i < end; ++i) {
                                multiply_few(sweep, live.groups[i], x, f.tokens, w, own.sums);
                                for (std::int64_t token = 0; token < f.tokens; ++token) {
                                    finish(token, live.groups[i], own.sums + token * sweep.stride);
                                }
                            }
                        });
        return;
    }
    sweep.template pack<Outputs::rows, T>(f, parallel);
    sweep.run(x, f.tokens, kGated<Activate> ? nullptr : in_place(y), parallel, finish);
}

// --- Backward

constexpr std::int64_t kBlock = 512;  // tokens whose pre-activations are differentiated at a time
constexpr std::int64_t kBlockPerWorker = 128;
constexpr std::int64_t kChunk = 128;      // tokens between two visits of the sums of grad_w
constexpr std::int64_t kStrip = 32;       // columns of a packed strip
constexpr std::int64_t kPackTokens = 8;   // read side by side
constexpr std::int64_t kGrain = 1 << 14;  // elements worth a task
static_assert(kBlock % kChunk == 0 && kBlockPerWorker % kChunk == 0 && kChunk % kPackTokens == 0);
static_assert(kStrip % Vec::width == 0 && kPackTokens % 2 == 0);

// A worker's operands for grad_w: a chunk of tokens, of the gradient the columns of one group.
template <class E>
struct ChunkOperands {
    E* strips;             // the gradient as A along its columns, kStrip of them at a time
    E* panels;             // x as B, one block of columns after the other
    std::int32_t* packed;  // whether they are, for each block

    ChunkOperands(Arena& arena, const MaskedLinear& f, std::int64_t widest)
        : strips(take<E>(arena, kChunk * padded_columns(widest))),
          panels(take<E>(arena, kChunk * padded_columns(f.in_width))),
          packed(take<std::int32_t>(arena, divide_up(f.in_width, f.block))) {}
};

template <class E>
struct BackwardScratch {
    Arena arena;
    std::int64_t block;  // tokens at a time; a multiple of kChunk, so the sums do not show it
    Sweep<E> sweep;
    E* grad;
    float *weight_sums, *bias_sums;
    std::int64_t operands_size;
    float* operands;  // of all workers

    BackwardScratch(const MaskedLinearBackward& problem, const MaskedLinear& f,
                    const Workspace& workspace)
        : arena(workspace.scratch),
          block(f.activation == Activation::none ? f.tokens : block_tokens(f, workspace.workers)),
          sweep(arena, problem.for_grad_x, smaller(block, f.tokens), f.out_width, f.in_width, false,
                workspace.workers),
          grad(take<E>(arena, f.activation == Activation::none ? 0 : block * f.out_width)),
          weight_sums(arena.take(f.dtype == DType::float32 ? 0 : f.out_width * f.in_width)),
          bias_sums(arena.take(f.out_width)) {
        Arena counter(nullptr);
        ChunkOperands<E>(counter, f, problem.for_grad_w.widest);
        operands_size = counter.used();
        operands = arena.take(operands_size * workspace.workers);
    }

  private:
    static std::int64_t block_tokens(const MaskedLinear& f, std::int64_t workers) {
        const std::int64_t wanted = workers * kBlockPerWorker;
        return smaller(round_up(f.tokens, kChunk), wanted < kBlock ? kBlock : wanted);
    }
};

// The gradient of a token's pre-activations, of which there are `half`, with glu twice as many.
template <class Activate, class T, class E>
void differentiate(const T* grad_y, const T* pre_activation, std::int64_t half, E* grad) {
    for (std::int64_t i = 0; i < half; i += Vec::width) {
        const std::int64_t rest = half - i;
        const Vec g = load_some(grad_y + i, rest);
        const Vec h = load_some(pre_activation + i, rest);
        if constexpr (kGated<Activate>) {
            const Vec s = sigmoid(load_some(pre_activation + half + i, rest));
            store_some(grad + i, g * s, rest);
            store_some(grad + half + i, g * h * s * (Vec(1.0f) - s), rest);
        } else {
            store_some(grad + i, g * Activate::value_and_slope(h).slope, rest);
        }
    }
}

// Columns of some rows, `step` at a time, as A along its columns or, with kPanel, as B.
template <class T, class E>
void pack_tokens(const Rows<T>& rows, std::int64_t count, std::int64_t first, std::int64_t columns,
                 std::int64_t step, E* out) {
    for (std::int64_t token = 0; token < count; token += kPackTokens) {
        for (std::int64_t i = 0; i < columns; i += step) {
            const std::int64_t width = smaller(step, columns - i);
            const std::int64_t stride = padded_columns(width);
            pack_columns(rows[token] + first + i, rows.stride, smaller(kPackTokens, count - token),
                         width, out + i * padded_depth<E>(count) + token * stride, stride);
        }
    }
}

// sums += the sum of the strips of a group over `depth` tokens.
template <class E>
void add_tokens(const E* strips, std::int64_t depth, const OutputGroup& group, float* sums) {
    for (std::int64_t i = 0; i < group.count; i += kStrip) {
        const std::int64_t columns = smaller(kStrip, group.count - i);
        const E* words = strips + i * padded_depth<E>(depth);
        for (std::int64_t j = 0; j < columns; j += Vec::width) {
            float* sum = sums + group.first + i + j;
            const Vec more =
                sum_words(words + j * kPerWord<E>, padded_columns(columns) * kPerWord<E>,
                          divide_up(depth, kPerWord<E>), Vec::width);
            store_some(sum, load_some(sum, columns - j) + more, columns - j);
        }
    }
}

// Adds the products of grad^T and x over a chunk of tokens to the pieces [begin, end) of a group.
template <class T, class E>
void add_products(const MaskedLinear& f, const LivePiece* begin, const LivePiece* end,
                  const Rows<T>& x, std::int64_t depth, const ChunkOperands<E>& own, float* sums) {
    for (const LivePiece* piece = begin; piece < end; ++piece) {
        std::int32_t& packed = own.packed[piece->input / f.block];
        if (packed) continue;
        pack_tokens(x, depth, piece->input, piece->inputs, kPanel,
                    own.panels + piece->input * padded_depth<E>(depth));
        packed = true;
    }
    for (std::int64_t i = 0; begin < end && i < begin->outputs; i += kStrip) {
        const std::int64_t rows = smaller(kStrip, begin->outputs - i);
        for (const LivePiece* piece = begin; piece < end; ++piece) {
            multiply<Order::column, Data::far>(
                rows, piece->inputs, depth, own.strips + i * padded_depth<E>(depth),
                padded_columns(rows), own.panels + piece->input * padded_depth<E>(depth),
                sums + (piece->output + i) * f.in_width + piece->input, f.in_width);
        }
    }
}

// A block of tokens: writes grad_x, adds to the sums of grad_w and grad_b.
template <class T, class E, class G>
void backward_block(const MaskedLinearBackward& problem, const BackwardScratch<E>& scratch,
                    const Rows<G>& grad, const Rows<T>& x, std::int64_t first, std::int64_t tokens,
                    float* weight_sums, std::int64_t workers, const ParallelFor& parallel) {
    const MaskedLinear& f = problem.linear;
    if (problem.grad_x != nullptr) {
        T* grad_x = static_cast<T*>(problem.grad_x) + first * f.in_width;
        scratch.sweep.run(grad, tokens, in_place(grad_x), parallel,
                          [&](std::int64_t token, const OutputGroup& group, const float* sums) {
                              store_row(sums, group.count,
                                        grad_x + token * f.in_width + group.first);
                          });
    }
    const LivePieces& live = problem.for_grad_w;
    const bool weight = problem.grad_w != nullptr, bias = problem.grad_b != nullptr;
    if (!weight && !bias) return;
    const auto work = [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
        Arena arena(scratch.operands + worker * scratch.operands_size);
        const ChunkOperands<E> own(arena, f, live.widest);
        const bool last = worker + 1 == workers;
        for (std::int64_t chunk = 0; chunk < tokens; chunk += kChunk) {
            const std::int64_t depth = smaller(kChunk, tokens - chunk);
            for (std::int64_t i = 0; i < divide_up(f.in_width, f.block); ++i) own.packed[i] = false;
            for (std::int64_t i = 0; i < live.group_count; ++i) {
                const OutputGroup& group = live.groups[i];
                const std::int64_t from = group.begin < begin ? begin : group.begin;
                const std::int64_t to = weight ? smaller(group.end, end) : from;
                const bool sum = bias && from == group.begin && (from < end || last);
                if (from >= to && !sum) continue;
                pack_tokens(grad.from(chunk), depth, group.first, group.count, kStrip, own.strips);
                if (sum) add_tokens(own.strips, depth, group, scratch.bias_sums);
                add_products(f, live.pieces + from, live.pieces + to, x.from(chunk), depth, own,
                             weight_sums);
            }
        }
    };
    parallel.shares(live.count, workers, work);
}

template <class T, class Activate>
void backward(const MaskedLinearBackward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    using E = Operand<T>;
    const MaskedLinear& f = problem.linear;
    const BackwardScratch<E> scratch(problem, f, workspace);
    const std::int64_t half = result_width<Activate>(f);
    if (problem.grad_x != nullptr) {
        std::memset(scratch.sweep.start, 0, f.in_width * sizeof(float));
        scratch.sweep.template pack<Outputs::columns, T>(f, parallel);
    }
    T* grad_w = static_cast<T*>(problem.grad_w);
    float* weight_sums = in_place(grad_w) == nullptr ? scratch.weight_sums : in_place(grad_w);
    const std::int64_t weights = grad_w == nullptr ? 0 : f.out_width * f.in_width;
    parallel(weights, kGrain, [&](std::int64_t begin, std::int64_t end) {
        std::memset(weight_sums + begin, 0, (end - begin) * sizeof(float));
    });
    std::memset(scratch.bias_sums, 0, f.out_width * sizeof(float));

    const Rows<T> all_x{static_cast<const T*>(f.x), f.x_stride};
    const Rows<T> all_grad_y{static_cast<const T*>(problem.grad_y), problem.grad_y_stride};
    for (std::int64_t first = 0; first < f.tokens; first += scratch.block) {
        const std::int64_t tokens = smaller(scratch.block, f.tokens - first);
        const Rows<T> x = all_x.from(first), grad_y = all_grad_y.from(first);
        if constexpr (kIdentity<Activate>) {
            backward_block(problem, scratch, grad_y, x, first, tokens, weight_sums,
                           workspace.workers, parallel);
        } else {
            const T* kept = static_cast<const T*>(problem.pre_activation) + first * f.out_width;
            parallel(tokens, 1, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i) {
                    differentiate<Activate>(grad_y[i], kept + i * f.out_width, half,
                                            scratch.grad + i * f.out_width);
                }
            });
            backward_block(problem, scratch, Rows<E>{scratch.grad, f.out_width}, x, first, tokens,
                           weight_sums, workspace.workers, parallel);
        }
    }

    parallel(weights, kGrain, [&](std::int64_t begin, std::int64_t end) {
        store_row(weight_sums + begin, end - begin, grad_w + begin);
    });
    if (problem.grad_b != nullptr) {
        store_row(scratch.bias_sums, f.out_width, static_cast<T*>(problem.grad_b));
    }
}

template <class Run>
void choose(const MaskedLinear& f, const Run& run) {
    choose<Identity, Silu, Relu, Gelu, Glu>(f.dtype, f.activation, run);
}

}  // namespace

std::int64_t masked_linear_forward_scratch(const MaskedLinearForward& problem,
                                           std::int64_t workers) {
    std::int64_t used = 0;
    choose(problem.linear, [&]<class T, class Activate>() {
        used = ForwardScratch<Operand<T>, Activate>(problem, {nullptr, workers}).arena.used();
    });
    return used;
}

void masked_linear_forward(const MaskedLinearForward& problem, const Workspace& workspace,
                           const ParallelFor& parallel) {
    choose(problem.linear,
           [&]<class T, class Activate>() { forward<T, Activate>(problem, workspace, parallel); });
}

std::int64_t masked_linear_backward_scratch(const MaskedLinearBackward& problem,
                                            std::int64_t workers) {
    std::int64_t used = 0;
    choose(problem.linear, [&]<class T, class Activate>() {
        used =
            BackwardScratch<Operand<T>>(problem, problem.linear, {nullptr, workers}).arena.used();
    });
    return used;
}

void masked_linear_backward(const MaskedLinearBackward& problem, const Workspace& workspace,
                            const ParallelFor& parallel) {
    choose(problem.linear,
           [&]<class T, class Activate>() { backward<T, Activate>(problem, workspace, parallel); });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
