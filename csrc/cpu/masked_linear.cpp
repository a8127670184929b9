// A linear layer over the live pieces of its weight, forward and backward.
//
// Floor: with T tokens and n live elements of the weight, each of y, grad_x and grad_w takes
// 2 T n flops at the FMA peak of the core(s). At low density memory takes over: every product reads
// or writes all of x and y once.
//
// y and grad_x: each live piece is packed once, as a B operand of gemm.h. A tile of tokens stays in
// L2 while the groups of output columns pass: the sums of a group come from all of its pieces into
// a small buffer, from where memory sees each result once, with bias and activation on the way.
//
// grad_w: blocks of tokens. Of each, the gradient of the pre-activations is packed as strips (A
// along its columns), x as panels (B); then every live piece, a task of its own, adds its product
// to its sums. A sum over tokens is cut at fixed places and runs in a fixed order, so that the bits
// depend neither on the number of threads nor on the size of blocks and tiles.
#include "dmao/masked_linear.h"

#include <cstring>

#include "activation.h"
#include "arena.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTile = 128;  // tokens
constexpr std::int64_t kSmallestTile = 32;

// Every worker gets equally many tiles. Whole pairs of tokens.
std::int64_t tile_tokens(std::int64_t tokens, std::int64_t workers) {
    if (tokens <= kSmallestTile) return kSmallestTile;
    const std::int64_t tiles = round_up(divide_up(tokens, kTile), workers);
    const std::int64_t tile = round_up(divide_up(tokens, tiles), kRows);
    return tile < kSmallestTile ? kSmallestTile : tile;
}

// Floats that hold this many elements.
template <class E>
std::int64_t floats(std::int64_t elements) {
    return divide_up(elements, kPerWord<E>);
}

template <class E>
E* take(Arena& arena, std::int64_t elements) {
    return reinterpret_cast<E*>(arena.take(floats<E>(elements)));
}

template <class T>
void store_some(T* p, Vec x, std::int64_t count) {
    count >= Vec::width ? store(p, x) : store(p, x, static_cast<int>(count));
}

// A matrix with contiguous rows.
template <class E>
struct Rows {
    const E* data;
    std::int64_t stride;

    const E* operator[](std::int64_t i) const { return data + i * stride; }
    Rows from(std::int64_t i) const { return {data + i * stride, stride}; }
};

// Rows as an A operand: in place, or converted into the buffer.
template <class E>
Rows<E> operand_rows(const Rows<E>& source, std::int64_t, std::int64_t, E*) {
    return source;
}
template <class E, class T>
Rows<E> operand_rows(const Rows<T>& source, std::int64_t rows, std::int64_t width, E* buffer) {
    for (std::int64_t i = 0; i < rows; ++i) as_operand(source[i], width, buffer + i * width);
    return {buffer, width};
}

template <class T>
void store_row(const float* sums, std::int64_t count, T* out) {
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        store_some(out + i, load_words<float>(sums + i, count - i), count - i);
    }
}

// --- Products with the weight: y and grad_x

enum class Outputs { rows, columns };  // of the weight

template <Outputs outputs, class T, class E>
void pack_piece(const Selection<T>& w, const LivePiece& piece, E* packed) {
    for (std::int64_t first = 0; first < piece.outputs; first += kPanel) {
        const std::int64_t columns = smaller(kPanel, piece.outputs - first);
        if constexpr (outputs == Outputs::rows) {
            pack_panel_transposed(w, piece.input, piece.inputs, piece.output + first, columns,
                                  packed);
        } else {
            pack_panel(w, piece.input, piece.inputs, piece.output + first, columns, packed);
        }
        packed += padded_depth<E>(piece.inputs) * padded_columns(columns);
    }
}

// Rows times the live pieces. A group's sums have one row per token, those of gates behind the
// others.
template <class E>
struct Sweep {
    const LivePieces& live;
    std::int64_t workers, tile, width, half, gates, stride, buffer_size;
    E* packed;
    float* buffers;

    struct Buffers {
        float* sums;  // [tile, stride]
        E* input;     // [tile, width], where it has to be converted

        Buffers(Arena& arena, const Sweep& sweep, bool convert)
            : sums(arena.take(sweep.tile * sweep.stride)),
              input(take<E>(arena, convert ? sweep.tile * sweep.width : 0)) {}
    };

    // half: the number of outputs, of which there are twice as many with gates.
    Sweep(Arena& arena, const LivePieces& live, std::int64_t tokens, std::int64_t width,
          std::int64_t half, bool gated, std::int64_t workers)
        : live(live),
          workers(workers),
          tile(tile_tokens(tokens, workers)),
          width(width),
          half(half),
          gates(padded_columns(live.widest)),
          stride(gated ? 2 * gates : gates),
          packed(take<E>(arena, live.packed)) {
        Arena counter(nullptr);
        Buffers(counter, *this, true);
        buffer_size = counter.used();
        buffers = arena.take(buffer_size * workers);
    }

    template <Outputs outputs, class T>
    void pack(const MaskedLinear& f, const ParallelFor& parallel) const {
        const Selection<T> w{static_cast<const T*>(f.w), f.w_stride, nullptr, nullptr};
        parallel(live.count, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                pack_piece<outputs>(w, live.pieces[i], packed + live.pieces[i].packed);
            }
        });
    }

    void multiply_group(const OutputGroup& group, const Rows<E>& a, std::int64_t rows,
                        float* sums) const {
        std::memset(sums, 0, rows * stride * sizeof(float));
        for (std::int64_t i = group.begin; i < group.end; ++i) {
            const LivePiece& piece = live.pieces[i];
            const std::int64_t column =
                piece.output < half ? piece.output : piece.output - half + gates;
            multiply<Order::row>(rows, piece.outputs, piece.inputs, a.data + piece.input, a.stride,
                                 packed + piece.packed, sums + column - group.first, stride);
        }
    }

    // finish(token, group, its sums) for every token and group.
    template <class T, class Finish>
    void run(const Rows<T>& input, std::int64_t tokens, const ParallelFor& parallel,
             const Finish& finish) const {
        const std::int64_t tasks = divide_up(tokens, tile) * live.group_count;
        const auto work = [&](std::int64_t begin, std::int64_t end, const Buffers& buffers) {
            std::int64_t token = -1, rows = 0;
            Rows<E> a{};
            for (std::int64_t task = begin; task < end; ++task) {
                if (task / live.group_count * tile != token) {
                    token = task / live.group_count * tile;
                    rows = smaller(tile, tokens - token);
                    a = operand_rows(input.from(token), rows, width, buffers.input);
                }
                const OutputGroup& group = live.groups[task % live.group_count];
                multiply_group(group, a, rows, buffers.sums);
                for (std::int64_t row = 0; row < rows; ++row) {
                    finish(token + row, group, buffers.sums + row * stride);
                }
            }
        };
        parallel(workers, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t worker = begin; worker < end; ++worker) {
                Arena own(buffers + worker * buffer_size);
                work(tasks * worker / workers, tasks * (worker + 1) / workers,
                     Buffers(own, *this, true));
            }
        });
    }
};

// --- Forward

struct Glu {};

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
    float* bias;

    ForwardScratch(const MaskedLinearForward& problem, const Workspace& workspace)
        : arena(workspace.scratch),
          sweep(arena, problem.by_rows, problem.linear.tokens, problem.linear.in_width,
                result_width<Activate>(problem.linear), kGated<Activate>, workspace.workers),
          bias(arena.take(problem.linear.out_width + Vec::width)) {}
};

// Sums and bias of some neighbouring outputs of a token.
struct PreActivation {
    const float *sums, *bias;

    Vec at(std::int64_t i) const { return load(sums + i) + load(bias + i); }
};

template <class T>
void keep(PreActivation h, std::int64_t count, T* kept) {
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        store_some(kept + i, h.at(i), count - i);
    }
}

template <class T, class Activate>
void forward(const MaskedLinearForward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const MaskedLinear& f = problem.linear;
    const ForwardScratch<Operand<T>, Activate> scratch(problem, workspace);
    const Sweep<Operand<T>>& sweep = scratch.sweep;
    const T* b = static_cast<const T*>(problem.b);
    for (std::int64_t i = 0; i < f.out_width; ++i) {
        scratch.bias[i] = b == nullptr ? 0.0f : to_float(b[i]);
    }
    sweep.template pack<Outputs::rows, T>(f, parallel);
    sweep.run(Rows<T>{static_cast<const T*>(f.x), f.x_stride}, f.tokens, parallel,
              [&](std::int64_t token, const OutputGroup& group, const float* sums) {
                  const float* bias = scratch.bias + group.first;
                  const PreActivation h{sums, bias}, gates{sums + sweep.gates, bias + sweep.half};
                  if (problem.pre_activation != nullptr) {
                      T* kept = static_cast<T*>(problem.pre_activation) + token * f.out_width +
                                group.first;
                      keep(h, group.count, kept);
                      if constexpr (kGated<Activate>) keep(gates, group.count, kept + sweep.half);
                  }
                  T* y = static_cast<T*>(problem.y) + token * sweep.half + group.first;
                  for (std::int64_t i = 0; i < group.count; i += Vec::width) {
                      Vec value(0.0f);
                      if constexpr (kGated<Activate>) {
                          value = h.at(i) * sigmoid(gates.at(i));
                      } else {
                          value = Activate::value(h.at(i));
                      }
                      store_some(y + i, value, group.count - i);
                  }
              });
}

// --- Backward

constexpr std::int64_t kBlock = 512;  // tokens that are packed for grad_w at a time
constexpr std::int64_t kBlockPerWorker = 128;
constexpr std::int64_t kChunk = 128;  // tokens between two visits of the sums of grad_w
constexpr std::int64_t kStrip = Vec::width == 16 ? 16 : 24;  // columns of a packed strip
constexpr std::int64_t kPackTokens = 8;                      // read side by side
constexpr std::int64_t kGrain = 1 << 14;                     // elements worth a task
constexpr std::int64_t kSumWords = 16;                       // that a bias gradient sums one by one
static_assert(kBlock % kChunk == 0 && kBlockPerWorker % kChunk == 0 && kChunk % kPackTokens == 0);
static_assert(kStrip % kRows == 0 && kStrip % Vec::width == 0);

// A block of tokens as an operand of grad_w: for every chunk of tokens and group of columns, pieces
// of `step` columns, [chunk][group][piece][token]. With steps of kPanel that is the packed form of
// B, with others that of A along its columns.
template <class E>
struct TokenBlock {
    E* data;
    std::int64_t width, step, tokens;

    std::int64_t depth(std::int64_t chunk) const { return smaller(kChunk, tokens - chunk); }

    // The tokens from `chunk` on, a multiple of kChunk.
    E* at(std::int64_t chunk, std::int64_t column) const {
        return data + chunk * padded_columns(width) + column * padded_depth<E>(depth(chunk));
    }

    // rows: the tokens from `token` on, `count` of one chunk.
    template <class T>
    void pack(const Rows<T>& rows, std::int64_t token, std::int64_t count,
              const OutputGroup& group) const {
        const std::int64_t chunk = token / kChunk * kChunk;
        for (std::int64_t i = 0; i < group.count; i += step) {
            const std::int64_t columns = smaller(step, group.count - i);
            const std::int64_t stride = padded_columns(columns);
            pack_columns(rows.data + group.first + i, rows.stride, count, columns,
                         at(chunk, group.first + i) + (token - chunk) * stride, stride);
        }
    }
};

template <class E>
struct BackwardScratch {
    Arena arena;
    std::int64_t block;  // tokens at a time; a multiple of kChunk, so the sums do not show it
    Sweep<E> sweep;
    E *grad, *strips, *panels;
    float *weight_sums, *bias_sums;

    BackwardScratch(const MaskedLinearBackward& problem, const MaskedLinear& f,
                    const Workspace& workspace)
        : arena(workspace.scratch),
          block(smaller(round_up(f.tokens, kChunk), workspace.workers * kBlockPerWorker < kBlock
                                                        ? kBlock
                                                        : workspace.workers * kBlockPerWorker)),
          sweep(arena, problem.by_columns, smaller(block, f.tokens), f.out_width, f.in_width, false,
                workspace.workers),
          grad(take<E>(arena, f.activation == LinearActivation::none ? 0 : block * f.out_width)),
          strips(take<E>(arena, block * padded_columns(f.out_width))),
          panels(take<E>(arena, block * padded_columns(f.in_width))),
          weight_sums(arena.take(f.dtype == DType::float32 ? 0 : f.out_width * f.in_width)),
          bias_sums(arena.take(f.out_width)) {}
};

// The gradient of a token's pre-activations, of which there are `half`, with glu twice as many.
template <class Activate, class T, class E>
void differentiate(const T* grad_y, const T* pre_activation, std::int64_t half, E* grad) {
    for (std::int64_t i = 0; i < half; i += Vec::width) {
        const std::int64_t rest = half - i;
        const Vec g = load_words<float>(grad_y + i, rest);
        const Vec h = load_words<float>(pre_activation + i, rest);
        if constexpr (kGated<Activate>) {
            const Vec s = sigmoid(load_words<float>(pre_activation + half + i, rest));
            store_some(grad + i, g * s, rest);
            store_some(grad + half + i, g * h * s * (Vec(1.0f) - s), rest);
        } else {
            store_some(grad + i, g * Activate::value_and_slope(h).slope, rest);
        }
    }
}

// sums += the products of grad^T and x over a piece of the weight.
template <class E>
void add_products(const TokenBlock<E>& grad, const TokenBlock<E>& x, const LivePiece& piece,
                  std::int64_t block, float* sums) {
    const std::int64_t end = piece.input + piece.inputs;
    for (std::int64_t chunk = 0; chunk < grad.tokens; chunk += kChunk) {
        for (std::int64_t i = 0; i < piece.outputs; i += grad.step) {
            const std::int64_t row = piece.output + i;
            const std::int64_t rows = smaller(grad.step, piece.outputs - i);
            for (std::int64_t column = piece.input; column < end; column += block) {
                multiply<Order::column>(rows, smaller(block, end - column), grad.depth(chunk),
                                        grad.at(chunk, row), padded_columns(rows),
                                        x.at(chunk, column), sums + row * x.width + column,
                                        x.width);
            }
        }
    }
}

// The sum of Vec::width neighbouring columns over words, by halves: less rounding than one by one.
template <class E>
Vec sum_words(const E* words, std::int64_t stride, std::int64_t count) {
    if (count > kSumWords) {
        const std::int64_t half = count / 2;
        return sum_words(words, stride, half) +
               sum_words(words + half * stride, stride, count - half);
    }
    E one[Vec::width];
    store(one, Vec(1.0f));
    const Vec ones = broadcast_word(one);
    Vec sum(0.0f);
    for (; count > 0; --count, words += stride) {
        sum = multiply_add(words, load(reinterpret_cast<const float*>(words)), ones, sum);
    }
    return sum;
}

// sums += the sum of grad over the tokens, for the columns of the group.
template <class E>
void add_tokens(const TokenBlock<E>& grad, const OutputGroup& group, float* sums) {
    for (std::int64_t i = 0; i < group.count; i += grad.step) {
        const std::int64_t columns = smaller(grad.step, group.count - i);
        const std::int64_t stride = padded_columns(columns) * kPerWord<E>;
        for (std::int64_t chunk = 0; chunk < grad.tokens; chunk += kChunk) {
            const E* words = grad.at(chunk, group.first + i);
            for (std::int64_t j = 0; j < columns; j += Vec::width) {
                float* sum = sums + group.first + i + j;
                const int n = static_cast<int>(smaller(Vec::width, columns - j));
                store(sum,
                      load(sum, n) + sum_words(words + j * kPerWord<E>, stride,
                                               divide_up(grad.depth(chunk), kPerWord<E>)),
                      n);
            }
        }
    }
}

// A block of tokens: writes grad_x, adds to the sums of grad_w and grad_b.
template <class T, class E, class G>
void backward_block(const MaskedLinearBackward& problem, const BackwardScratch<E>& scratch,
                    const Rows<G>& grad, const Rows<T>& x, std::int64_t first, std::int64_t tokens,
                    float* weight_sums, const ParallelFor& parallel) {
    const MaskedLinear& f = problem.linear;
    if (problem.grad_x != nullptr) {
        T* grad_x = static_cast<T*>(problem.grad_x) + first * f.in_width;
        scratch.sweep.run(grad, tokens, parallel,
                          [&](std::int64_t token, const OutputGroup& group, const float* sums) {
                              store_row(sums, group.count,
                                        grad_x + token * f.in_width + group.first);
                          });
    }
    const bool weight = problem.grad_w != nullptr, bias = problem.grad_b != nullptr;
    if (!weight && !bias) return;
    const LivePieces &by_rows = problem.by_rows, &by_columns = problem.by_columns;
    const TokenBlock<E> strips{scratch.strips, f.out_width, kStrip, tokens};
    const TokenBlock<E> panels{scratch.panels, f.in_width, kPanel, tokens};
    parallel(divide_up(tokens, kPackTokens), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t token = begin * kPackTokens; begin < end; ++begin, token += kPackTokens) {
            const std::int64_t count = smaller(kPackTokens, tokens - token);
            for (std::int64_t i = 0; i < by_rows.group_count; ++i) {
                const OutputGroup& group = by_rows.groups[i];
                if (bias || group.begin < group.end) {
                    strips.pack(grad.from(token), token, count, group);
                }
            }
            for (std::int64_t i = 0; weight && i < by_columns.group_count; ++i) {
                const OutputGroup& group = by_columns.groups[i];
                if (group.begin < group.end) panels.pack(x.from(token), token, count, group);
            }
        }
    });
    const std::int64_t pieces = weight ? by_rows.count : 0;
    parallel(pieces + (bias ? by_rows.group_count : 0), 1,
             [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                     if (i < pieces) {
                         add_products(strips, panels, by_rows.pieces[i], f.block, weight_sums);
                     } else {
                         add_tokens(strips, by_rows.groups[i - pieces], scratch.bias_sums);
                     }
                 }
             });
}

// Where the sums of grad_w are formed: in place, or in a buffer that is narrowed at the end.
float* sums_of(float* target, float*) { return target; }
float* sums_of(bfloat16*, float* buffer) { return buffer; }
void narrow(float*, const float*, std::int64_t) {}
void narrow(bfloat16* target, const float* sums, std::int64_t count) {
    store_row(sums, count, target);
}

template <class T, class Activate>
void backward(const MaskedLinearBackward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    using E = Operand<T>;
    const MaskedLinear& f = problem.linear;
    const BackwardScratch<E> scratch(problem, f, workspace);
    const std::int64_t half = result_width<Activate>(f);
    if (problem.grad_x != nullptr) {
        scratch.sweep.template pack<Outputs::columns, T>(f, parallel);
    }
    T* grad_w = static_cast<T*>(problem.grad_w);
    float* weight_sums = sums_of(grad_w, scratch.weight_sums);
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
            backward_block(problem, scratch, grad_y, x, first, tokens, weight_sums, parallel);
        } else {
            const T* kept = static_cast<const T*>(problem.pre_activation) + first * f.out_width;
            parallel(tokens, 1, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i) {
                    differentiate<Activate>(grad_y[i], kept + i * f.out_width, half,
                                            scratch.grad + i * f.out_width);
                }
            });
            backward_block(problem, scratch, Rows<E>{scratch.grad, f.out_width}, x, first, tokens,
                           weight_sums, parallel);
        }
    }

    parallel(weights, kGrain, [&](std::int64_t begin, std::int64_t end) {
        narrow(grad_w + begin, weight_sums + begin, end - begin);
    });
    if (problem.grad_b != nullptr) {
        store_row(scratch.bias_sums, f.out_width, static_cast<T*>(problem.grad_b));
    }
}

// run<T, Activate>() for the dtype and the activation of the problem.
template <class Run>
void choose(const MaskedLinear& f, const Run& run) {
    const auto choose_activation = [&]<class T>() {
        switch (f.activation) {
            case LinearActivation::none:
                return run.template operator()<T, Identity>();
            case LinearActivation::silu:
                return run.template operator()<T, Silu>();
            case LinearActivation::relu:
                return run.template operator()<T, Relu>();
            case LinearActivation::gelu:
                return run.template operator()<T, Gelu>();
            case LinearActivation::glu:
                return run.template operator()<T, Glu>();
        }
    };
    if (f.dtype == DType::float32) {
        choose_activation.template operator()<float>();
    } else {
        choose_activation.template operator()<bfloat16>();
    }
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
