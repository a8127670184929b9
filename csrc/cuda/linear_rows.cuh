// What linear layers do with rows of matrices beside products: copies in which rows are aligned,
// sums of columns, the dropout mask as bits.
//
// Floor: bytes, but for dropout (philox.cuh).
#pragma once

#include "linear_sources.cuh"
#include "philox.cuh"
#include "vectors.cuh"

namespace dmao {

inline constexpr int kRowThreads = 128;

__host__ __device__ constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Of threads that take eight columns each, row after row, and of which the last may find no row.
struct RowPlace {
    int row, column;

    __device__ __forceinline__ explicit RowPlace(const Divisor& eights) {
        const int at = static_cast<int>(blockIdx.x * kRowThreads + threadIdx.x);
        row = eights.quotient(at);
        column = (at - row * static_cast<int>(eights.value)) * kEight;
    }
};

// target [rows, stride] = the listed columns of source, zeros behind them.
template <class E>
__global__ void __launch_bounds__(kRowThreads)
    copy_columns_kernel(const E* source, std::int64_t source_stride, const LiveList list, int rows,
                        E* target, int stride, Divisor eights) {
    const Live live = list.of_line(0);
    const RowPlace place(eights);
    if (place.row >= rows) return;
    source += place.row * source_stride;
    float values[kEight];
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
        const int position = place.column + i;
        const bool there = position < live.positions;
        values[i] = there ? ptx::widen(source[live.element(position)]) : 0.0f;
    }
    store_eight(target + static_cast<std::int64_t>(place.row) * stride + place.column, kEight, true,
                values);
}

// --- Sums of columns: of spans of rows, then of those in their order

inline constexpr int kSumSpan = 256, kSumColumns = 128;

// parts [spans, columns rounded up to 8]
template <class E>
__global__ void __launch_bounds__(kRowThreads)
    sum_columns_kernel(Matrix<E> matrix, const LiveList list, int rows, int columns, float* parts) {
    constexpr int across = kSumColumns / kEight, down = kRowThreads / across;
    DMAO_SHARED(float, sums, kSumColumns* down);
    const Live live = list.of_line(0);
    const int end = live.positions < columns ? live.positions : columns;
    const int chunk = static_cast<int>(threadIdx.x) % across;
    const int line = static_cast<int>(threadIdx.x) / across;
    const int blocks = (columns + kSumColumns - 1) / kSumColumns;
    const int first = static_cast<int>(blockIdx.x) % blocks * kSumColumns;
    const int part = static_cast<int>(blockIdx.x) / blocks, span = part * kSumSpan;
    const int column = first + chunk * kEight;
    const int last = rows - span < kSumSpan ? rows : span + kSumSpan;
    float own[kEight] = {};
    if (column < end) {
        const int count = end - column < kEight ? end - column : kEight;
#pragma unroll 4
        for (int row = span + line; row < last; row += down) {
            float values[kEight];
            load_eight(matrix.values + static_cast<std::int64_t>(row) * matrix.stride + column,
                       count, count == kEight, values);
#pragma unroll
            for (int i = 0; i < kEight; ++i) own[i] += values[i];
        }
    }
#pragma unroll
    for (int i = 0; i < kEight; ++i) sums[line * kSumColumns + i * across + chunk] = own[i];
    __syncthreads();
    float sum = 0.0f;
    const int mine = static_cast<int>(threadIdx.x);
    for (int i = 0; i < down; ++i) {
        sum += sums[i * kSumColumns + mine % kEight * across + mine / kEight];
    }
    const int at = first + mine;
    if (at < end) parts[static_cast<std::int64_t>(part) * round_up(columns, kEight) + at] = sum;
}

// result[element] = the sum of the parts of its position.
template <class E>
__global__ void __launch_bounds__(kRowThreads)
    add_parts_kernel(const float* parts, const LiveList list, int spans, int columns, E* result) {
    const Live live = list.of_line(0);
    const int column = static_cast<int>(blockIdx.x * kRowThreads + threadIdx.x);
    if (column >= columns || column >= live.positions) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int span = 0; span < spans; ++span) {
        sum += parts[static_cast<std::int64_t>(span) * round_up(columns, kEight) + column];
    }
    result[live.element(column)] = ptx::narrow<E>(sum);
}

// --- Dropout

// The bits of LinearProduct of the listed elements, four bytes a thread. `groups`: of 128 elements,
// so many as one thing may touch; others are those of the whole list.
template <int threads>
__global__ void __launch_bounds__(threads)
    dropout_bits_kernel(const std::int64_t* seed, const LiveList list, unsigned threshold, int rows,
                        int groups, Divisor quads_of_row, unsigned char* bits, int bits_width) {
    constexpr int quads = 4;  // of bytes, in a group
    const int at = static_cast<int>(blockIdx.x * threads + threadIdx.x);
    const int row = quads_of_row.quotient(at);
    const int index = at - row * static_cast<int>(quads_of_row.value);
    if (row >= rows) return;
    const int quad = index % quads;
    int group = index / quads;
    if (!list.everything) {
        const int width = static_cast<int>(list.width.value), thing = group / groups;
        const int id = list.ids[thing];
        if (id < 0 || id >= list.things) return;
        const int first = id * width / 128, last = (id * width + width - 1) / 128;
        group = first + group % groups;
        if (group > last) return;
        // Whoever begins within the last group of the one before leaves it that group.
        if (thing > 0 && group == first) {
            const int before = list.ids[thing - 1];
            if (before >= 0 && before < id && (before * width + width - 1) / 128 == first) return;
        }
    }
    const Philox philox(seed);
    const int first = group * 16 + quad * 4;
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        word |= philox.keep_bits(static_cast<unsigned>(row), static_cast<unsigned>(first + i),
                                 threshold)
                << (8 * i);
    }
    *reinterpret_cast<unsigned*>(bits + static_cast<std::int64_t>(row) * bits_width + first) = word;
}

}  // namespace dmao
