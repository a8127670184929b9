// Rows times the live pieces of a weight, which y and grad_x of masked_linear share.
#pragma once

#include "arena.h"
#include "dmao/masked_linear.h"
#include "gemm.h"
#include "tiles.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

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

// Where sums of results are formed: in place, or (null) in a buffer that is narrowed at the end.
float* in_place(float* target) { return target; }
float* in_place(bfloat16*) { return nullptr; }

template <class T>
void store_row(const float* sums, std::int64_t count, T* out) {
    if (static_cast<const void*>(out) == sums) return;
    convert(sums, count, out);
}

constexpr std::int64_t kLongRun = 128;  // columns that the hardware fetches ahead by itself

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

// Rows times the live pieces. Where the sums of a group do not form in place, they do so in a
// buffer, with those of gates behind the others.
template <class E>
struct Sweep {
    const LivePieces& live;
    std::int64_t workers, tile, width, half, gates, stride, buffer_size;
    E* packed;
    float *start, *buffers;

    struct Buffers {
        float* sums;  // [tile, stride]
        E* input;     // [tile, width], where it has to be converted

        Buffers(Arena& arena, const Sweep& sweep)
            : sums(arena.take(sweep.tile * sweep.stride)),
              input(take<E>(arena, sweep.tile * sweep.width)) {}
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
          packed(take<E>(arena, live.packed)),
          start(arena.take((gated ? 2 * half : half) + kPanel)) {
        Arena counter(nullptr);
        Buffers(counter, *this);
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

    // Where a piece's outputs are in a row of sums that begins with output 0.
    std::int64_t column(const LivePiece& piece) const {
        return piece.output < half ? piece.output : piece.output - half + gates;
    }

    // The rows to ask for during piece i: those of the next live piece, or of the next tile. Long
    // runs of them are left to the hardware; what there is not does no harm.
    const E* ahead_of(std::int64_t i, const Rows<E>& a) const {
        std::int64_t next = i + 1;
        while (next < live.count && live.pieces[next].inputs == 0) ++next;
        if (next == live.count) return a[tile];
        return a.data + live.pieces[live.pieces[next].inputs > kLongRun ? i : next].input;
    }

    // Each output's sum starts from its place in `start`: its first piece brings that.
    void multiply_group(const OutputGroup& group, const Rows<E>& a, std::int64_t rows, float* sums,
                        std::int64_t sums_stride) const {
        std::int32_t last = -1;
        for (std::int64_t i = group.begin; i < group.end; ++i) {
            const LivePiece& piece = live.pieces[i];
            float* out = sums + column(piece) - group.first;
            for (std::int64_t row = 0; row < rows && piece.inputs == 0; ++row) {
                store_row(start + piece.output, piece.outputs, out + row * sums_stride);
            }
            if (piece.inputs == 0) continue;  // nothing lives
            multiply<Order::row, Data::far>(rows, piece.outputs, piece.inputs, a.data + piece.input,
                                            a.stride, packed + piece.packed, out, sums_stride,
                                            piece.output == last ? nullptr : start + piece.output,
                                            ahead_of(i, a));
            last = piece.output;
        }
    }

    // finish(token, group, its sums) for every token and group. target: where the sums of a token
    // and group form, or null.
    template <class T, class Finish>
    void run(const Rows<T>& input, std::int64_t tokens, float* target, const ParallelFor& parallel,
             const Finish& finish) const {
        const std::int64_t tasks = divide_up(tokens, tile) * live.group_count;
        const auto work = [&](std::int64_t begin, std::int64_t end, const Buffers& own) {
            std::int64_t token = -1, rows = 0;
            Rows<E> a{};
            for (std::int64_t task = begin; task < end; ++task) {
                if (task / live.group_count * tile != token) {
                    token = task / live.group_count * tile;
                    rows = smaller(tile, tokens - token);
                    a = operand_rows(input.from(token), rows, width, own.input);
                }
                const OutputGroup& group = live.groups[task % live.group_count];
                float* sums = target == nullptr ? own.sums : target + token * half + group.first;
                const std::int64_t sums_stride = target == nullptr ? stride : half;
                multiply_group(group, a, rows, sums, sums_stride);
                for (std::int64_t row = 0; row < rows; ++row) {
                    finish(token + row, group, sums + row * sums_stride);
                }
            }
        };
        each_task(tasks, parallel, work);
    }

    // work(begin, end, buffers): every worker with its share of the tasks and its own buffers.
    template <class Work>
    void each_task(std::int64_t tasks, const ParallelFor& parallel, const Work& work) const {
        parallel.shares(tasks, workers,
                        [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
                            Arena own(buffers + worker * buffer_size);
                            work(begin, end, Buffers(own, *this));
                        });
    }
};

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
