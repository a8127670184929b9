// What the threads of a block do with a piece of a tensor (cuts.h).
#pragma once

#include "cuts.h"
#include "quads.cuh"
#include "tables.cuh"

namespace dmao {

inline constexpr int kPieceThreads = 256, kPieceWarps = kPieceThreads / 32;
static_assert(kPieceColumns == 32 * kVector && kPieceColumns == kPieceThreads);

struct Piece {
    std::int64_t first;   // entry of the tensor
    std::int64_t rest;    // entries from there to the end of its matrix
    std::int64_t stride;  // of the rows
    int rows, columns;
    int sums;     // where its sums begin; negative: it has none
    bool single;  // whether it has one sum, else one for each column
};

// sums: where those of the tensor begin; negative: it has none.
__device__ __forceinline__ Piece piece_of(const Cut& cut, std::int64_t sums, std::uint32_t index) {
    const std::uint32_t across = static_cast<std::uint32_t>(cut.across());
    const std::uint32_t of_matrix = static_cast<std::uint32_t>(cut.down()) * across;
    const std::uint32_t matrix = index / of_matrix, inside = index % of_matrix;
    const std::int64_t row = std::int64_t{inside / across} * kPieceRows;
    const std::int64_t column = std::int64_t{inside % across} * kPieceColumns;
    const std::int64_t rows = cut.rows - row, columns = cut.width - column;
    const std::int64_t begin = row * cut.width + column;
    const std::int64_t place = cut.folded ? index : row / kPieceRows * cut.width + column;
    return {matrix * cut.size + begin,
            cut.size - begin,
            cut.width,
            static_cast<int>(rows < kPieceRows ? rows : kPieceRows),
            static_cast<int>(columns < kPieceColumns ? columns : kPieceColumns),
            sums < 0 ? -1 : static_cast<int>(sums + place),
            cut.folded};
}

// Calls visit(kind, place, count) for what this thread has of a piece: `count` of eight entries
// from `place` on, which are Whole where they are eight and starts_quads(place), else Broken. Warps
// take rows in turns, so that a row is read in one go.
template <class StartsQuads, class Visit>
__device__ __forceinline__ void walk_entries(const Piece& piece, const StartsQuads& starts_quads,
                                             const Visit& visit) {
    const int column = static_cast<int>(threadIdx.x) % 32 * kVector;
    for (int row = static_cast<int>(threadIdx.x) / 32; row < piece.rows; row += kPieceWarps) {
        const std::int64_t begin = row * piece.stride + column;
        std::int64_t count = piece.rest - begin;
        if (count > piece.columns - column) count = piece.columns - column;
        if (count >= kVector && starts_quads(piece.first + begin)) {
            visit(Whole{}, piece.first + begin, kVector);
        } else if (count > 0) {
            visit(Broken{}, piece.first + begin,
                  count < kVector ? static_cast<int>(count) : kVector);
        }
    }
}

// The sums of what each thread has of its columns, over all warps: one number, or one per column.
// In a fixed order. All threads of the block call this, for piece after piece.
__device__ __forceinline__ void store_sums(const Piece& piece, const float (&terms)[kVector],
                                           float* sums) {
    DMAO_SHARED(Quad, parts, kPieceWarps * 64);
    DMAO_SHARED(float, totals, kPieceWarps);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    parts[thread * 2] = quad_of<float>(terms);
    parts[thread * 2 + 1] = quad_of<float>(terms + 4);
    __syncthreads();
    const float* columns = reinterpret_cast<const float*>(parts);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPieceWarps; ++i) sum += columns[i * kPieceColumns + thread];
    if (piece.single) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, step);
        if (lane == 0) totals[warp] = sum;
    } else if (thread < piece.columns) {
        sums[piece.sums + thread] = sum;
    }
    __syncthreads();  // totals are there, and parts may be written again
    if (!piece.single || thread != 0) return;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPieceWarps; ++i) sum += totals[i];
    sums[piece.sums] = sum;
}

}  // namespace dmao
