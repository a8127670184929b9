// Launches of what linear layers are made of, from matrices as PyTorch has them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "launch.cuh"
#include "linear.cuh"
#include "linear_rows.cuh"
#include "linear_tiles.h"

namespace dmao {

// Launches on a GPU, and the memory that they share. Without memory nothing is launched, and what
// would be needed is counted: so that an operation tells both in one place.
class LinearRun {
  public:
    explicit LinearRun(const Gpu& gpu) : gpu(gpu), counts_(true) {}
    LinearRun(const Gpu& gpu, void* memory)
        : gpu(gpu), counts_(false), memory_(static_cast<char*>(memory)) {}

    const Gpu gpu;

    // Not initialised, aligned to 256 bytes.
    template <class T>
    T* take(std::int64_t count) {
        char* taken = counts_ ? nullptr : memory_ + bytes_;
        bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
        return reinterpret_cast<T*>(taken);
    }
    std::int64_t bytes() const { return bytes_; }

    template <auto kernel, class... Arguments>
    void launch(std::int64_t blocks, int planes, int threads, std::size_t shared_bytes,
                Arguments... arguments) const {
        if (counts_ || blocks == 0 || planes == 0) return;
        dmao::launch<kernel>(gpu, {static_cast<unsigned>(blocks), static_cast<unsigned>(planes), 1},
                             threads, shared_bytes, arguments...);
    }

  private:
    static constexpr std::int64_t kAlign = 256;
    bool counts_;
    char* memory_ = nullptr;
    std::int64_t bytes_ = 0;
};

// A matrix whose rows lie anywhere. They are aligned where chunks of them can be read whole.
template <class E>
struct Rows {
    const E* values;
    std::int64_t stride;
    int rows, columns;

    bool is_aligned() const {
        const auto address = reinterpret_cast<std::uintptr_t>(values);
        const bool rows_are = rows <= 1 || stride * static_cast<std::int64_t>(sizeof(E)) % 16 == 0;
        return address % 16 == 0 && rows_are && columns % kPerChunk<E> == 0 && stride <= INT32_MAX;
    }
};

// Of kernels with so many threads for a row, which they number in 32 bits.
inline std::int64_t thread_blocks(int rows, int threads_of_row) {
    const std::int64_t threads = std::int64_t{rows} * threads_of_row;
    if (threads > INT32_MAX) {
        throw std::runtime_error(
            "a linear layer needs more than 2^31 - 1 threads: " + std::to_string(rows) +
            " rows with " + std::to_string(threads_of_row) + " each");
    }
    return (threads + kRowThreads - 1) / kRowThreads;
}

// For kernels of RowPlace.
inline int eights(int columns) { return (columns + kEight - 1) / kEight; }
inline Divisor eights_of(int columns) { return Divisor(eights(columns)); }
inline std::int64_t row_blocks(int rows, int columns) {
    return thread_blocks(rows, eights(columns));
}

// The listed columns of a matrix, by position, in rows that are aligned.
template <class E>
Matrix<E> copy_columns(LinearRun& run, const Rows<E>& source, const LiveList& list) {
    const int stride = round_up(list.most_positions(), kEight);
    E* target = run.take<E>(static_cast<std::int64_t>(source.rows) * stride);
    run.launch<copy_columns_kernel<E>>(row_blocks(source.rows, stride), 1, kRowThreads, 0,
                                       source.values, source.stride, list, source.rows, target,
                                       stride, eights_of(stride));
    return {target, stride};
}

// The matrix, or a copy in rows that are aligned.
template <class E>
Matrix<E> aligned(LinearRun& run, const Rows<E>& source) {
    if (source.is_aligned()) return {source.values, static_cast<int>(source.stride)};
    return copy_columns(run, source, LiveList::all(source.columns));
}

// result[element] = the sums of the listed columns, which the matrix has by position.
template <class E>
void sum_columns(LinearRun& run, const Matrix<E>& matrix, int rows, const LiveList& list,
                 E* result) {
    const int columns = list.most_positions();
    const int spans = rows > kSumSpan ? (rows + kSumSpan - 1) / kSumSpan : 1;
    float* parts = run.take<float>(static_cast<std::int64_t>(spans) * round_up(columns, kEight));
    const std::int64_t blocks = (columns + kSumColumns - 1) / kSumColumns;
    run.launch<sum_columns_kernel<E>>(blocks * spans, 1, kRowThreads, 0, matrix, list, rows,
                                      columns, parts);
    run.launch<add_parts_kernel<E>>((columns + kRowThreads - 1) / kRowThreads, 1, kRowThreads, 0,
                                    parts, list, spans, columns, result);
}

// Launches the kernel of that tile. linear_products.cuh defines it: the kernels are compiled once,
// whoever calls them.
template <Pass pass, class E>
void launch_product(const LinearRun& run, const LinearProduct<E>& p, LinearTile tile);

// Forward or backward.
template <Pass pass, class E>
void multiply(const LinearRun& run, const LinearProduct<E>& p) {
    const int block = static_cast<int>(p.block.value);
    launch_product<pass>(run, p,
                         p.cut == Axis::columns
                             ? choose_tile_of_blocks(block, pass == Pass::forward)
                             : choose_tile(p.rows, p.columns, run.gpu.processors));
}

constexpr int rows_of(LinearTile tile) {
    return tile == LinearTile::t16x128                                 ? 16
           : tile == LinearTile::t32x128                               ? 32
           : tile == LinearTile::t64x128 || tile == LinearTile::t64x64 ? 64
                                                                       : 128;
}

// Sums over tokens, in planes where few tiles would leave processors idle.
template <class E>
void multiply_weights(LinearRun& run, LinearProduct<E> p) {
    const int block = p.cut == Axis::rows ? static_cast<int>(p.block.value) : 0;
    const LinearTile tile = choose_tile_of_weights(p.rows, p.columns, block);
    const int wide = tile == LinearTile::t64x64 ? 64 : 128;
    const std::int64_t tiles =
        static_cast<std::int64_t>(TilePlace::tiles(p, Axis::rows, p.rows, rows_of(tile))) *
        TilePlace::tiles(p, Axis::columns, p.columns, wide);
    const TokenSpans spans = choose_spans(p.depth, tiles, run.gpu.processors);
    p.plane_count = spans.count;
    p.span = spans.length;
    if (spans.count > 1) {
        p.planes = run.take<float>(static_cast<std::int64_t>(spans.count) * p.rows *
                                   round_up(p.columns, kEight));
    }
    launch_product<Pass::weights>(run, p, tile);
    if (spans.count > 1) {
        constexpr int columns = kPlaneThreads * kEight;
        const std::int64_t parts = (p.columns + columns - 1) / columns;
        run.launch<sum_planes_kernel<E>>(p.rows * parts, 1, kPlaneThreads, 0, p);
    }
}

}  // namespace dmao
