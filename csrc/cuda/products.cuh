// Products of tiles on tensor cores: sums [kRows, kColumns] of a block of threads += A B, step by
// step of kDepth along k, with copies into shared memory under way for the steps ahead.
//
// What a tile of A or B is made of, chunks of 16 bytes, is up to the caller: `source(line, chunk)`
// returns where a chunk is and how many of its bytes are there. Lines are rows of A or columns of B
// where k is what lies side by side in memory (Layout::lines_of_k), else they are the k of a step.
// A source that keeps pointers for its thread takes `source(copy, line, chunk)`: the copies of a
// thread are numbered, have one chunk in common, and their lines are threads / kChunks apart.
//
// Floor: a step multiplies 2 kRows kColumns kDepth flops out of (kRows + kColumns) kDepth elements.
#pragma once

#include <type_traits>

#include "ptx.cuh"

namespace dmao {

enum class Layout { lines_of_k, lines_across };

struct Chunk {
    const void* source;
    int bytes;  // 0 to 16; zeros take the place of the rest
};

inline constexpr int kChunkBytes = 16;

template <class E>
inline constexpr int kPerChunk = kChunkBytes / static_cast<int>(sizeof(E));

// Where a chunk of a line is, so that eight lines have the same chunk in different banks. With
// `turn` 2 four lines have two neighbouring chunks in different banks.
template <int chunks, int turn = 1>
__device__ __forceinline__ unsigned char* chunk_in(unsigned char* tile, int line, int chunk) {
    static_assert(chunks % 2 == 0);
    constexpr int group = chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : 2;  // who change places
    constexpr int lines = 8 / group;  // side by side in all banks, or half of them in turns
    const int swizzled = chunk ^ (line / lines * turn % group);
    return tile + (line * chunks + swizzled) * kChunkBytes;
}

// float32 across is read word by word: 4 lines of 8 places at once.
template <class E, Layout layout>
inline constexpr int kTurnOf = layout == Layout::lines_across && sizeof(E) == 4 ? 2 : 1;

// kWide: rows of A or columns of B in a tile.
template <class E, Layout layout, int kWide, int kDepth, int kTurn = kTurnOf<E, layout>>
struct SharedTile {
    static constexpr int kLines = layout == Layout::lines_of_k ? kWide : kDepth;
    static constexpr int kChunks = (layout == Layout::lines_of_k ? kDepth : kWide) / kPerChunk<E>;
    static constexpr int kBytes = kLines * kChunks * kChunkBytes;

    template <int threads>
    static constexpr int kCopies = (kLines * kChunks + threads - 1) / threads;

    template <int threads, class Source>
    __device__ static __forceinline__ void fetch(unsigned char* tile, const Source& source,
                                                 int thread = static_cast<int>(threadIdx.x)) {
        constexpr bool numbered = std::is_invocable_v<const Source&, int, int, int>;
        static_assert(!numbered || threads % kChunks == 0);
        [[maybe_unused]] constexpr int kUnrolled = numbered ? kCopies<threads> : 4;
#pragma unroll kUnrolled
        for (int i = 0; i < kCopies<threads>; ++i) {
            const int at = thread + i * threads;
            if (kLines * kChunks % threads != 0 && at >= kLines * kChunks) break;
            const int line = at / kChunks, chunk = at % kChunks;
            if constexpr (numbered) {
                constexpr int apart = threads / kChunks;
                static_assert(kCopies<threads> == 1 || apart * kTurn % 8 == 0);
                const Chunk found = source(i, line, chunk);
                ptx::async_copy(place(lines(tile, i * apart), line - i * apart, chunk),
                                found.source, found.bytes);
            } else {
                const Chunk found = source(line, chunk);
                ptx::async_copy(place(tile, line, chunk), found.source, found.bytes);
            }
        }
    }

    // Words of k ... k + 2 kChunk - 1 in 16 rows of A from `first` on.
    __device__ static __forceinline__ void read_rows(unsigned char* tile, int first, int k,
                                                     unsigned (&words)[4], int lane = own_lane()) {
        if constexpr (layout == Layout::lines_of_k) {
            const int chunk = k / kPerChunk<E> + lane / 16;
            ptx::load_matrices(words, place(lines(tile, first), lane % 16, chunk));
            round(words);
        } else if constexpr (sizeof(E) == 2) {
            const int line = lane / 16 * 8 + lane % 8, chunk = first / 8 + lane / 8 % 2;
            ptx::load_transposed(words, place(lines(tile, k), line, chunk));
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                words[i] = element(tile, k + lane % 4 + i / 2 * 4, first + lane / 4 + i % 2 * 8);
            }
        }
    }

    // The same of 16 columns of B, as two fragments of 8.
    __device__ static __forceinline__ void read_columns(unsigned char* tile, int first, int k,
                                                        unsigned (&left)[2], unsigned (&right)[2],
                                                        int lane = own_lane()) {
        unsigned words[4];
        if constexpr (layout == Layout::lines_of_k) {
            const int line = lane % 8 + lane / 16 * 8, chunk = k / kPerChunk<E> + lane / 8 % 2;
            ptx::load_matrices(words, place(lines(tile, first), line, chunk));
            round(words);
        } else if constexpr (sizeof(E) == 2) {
            const int line = lane % 8 + lane / 8 % 2 * 8, chunk = first / 8 + lane / 16;
            ptx::load_transposed(words, place(lines(tile, k), line, chunk));
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                words[i] = element(tile, k + lane % 4 + i % 2 * 4, first + lane / 4 + i / 2 * 8);
            }
        }
        left[0] = words[0];
        left[1] = words[1];
        right[0] = words[2];
        right[1] = words[3];
    }

    // The same of a tile with lines across and kTurn 1, with k in the order in which sums lie in
    // registers: for float32 the places t and t + 4 of a step are the lines 2 t and 2 t + 1.
    __device__ static __forceinline__ void read_rows_of_sums(unsigned char* tile, int first, int k,
                                                             unsigned (&words)[4],
                                                             int lane = own_lane()) {
        static_assert(layout == Layout::lines_across && kTurn == 1);
        if constexpr (sizeof(E) == 2) {
            read_rows(tile, first, k, words);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                words[i] = element(tile, k + lane % 4 * 2 + i / 2, first + lane / 4 + i % 2 * 8);
            }
        }
    }
    __device__ static __forceinline__ void read_columns_of_sums(unsigned char* tile, int first,
                                                                int k, unsigned (&left)[2],
                                                                unsigned (&right)[2],
                                                                int lane = own_lane()) {
        static_assert(layout == Layout::lines_across && kTurn == 1);
        if constexpr (sizeof(E) == 2) {
            read_columns(tile, first, k, left, right);
        } else {
            const int line = k + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                left[i] = element(tile, line + i, first + lane / 4);
                right[i] = element(tile, line + i, first + lane / 4 + 8);
            }
        }
    }

  private:
    __device__ static __forceinline__ int own_lane() { return static_cast<int>(threadIdx.x) % 32; }
    // From a line on that is a multiple of 8 / kTurn: chunks change places alike there.
    __device__ static __forceinline__ unsigned char* lines(unsigned char* tile, int first) {
        return tile + first * (kChunks * kChunkBytes);
    }
    __device__ static __forceinline__ unsigned char* place(unsigned char* tile, int line,
                                                           int chunk) {
        return chunk_in<kChunks, kTurn>(tile, line, chunk);
    }
    // One float32 of a tile with lines across, rounded.
    __device__ static __forceinline__ unsigned element(unsigned char* tile, int line, int at) {
        const float* chunk = reinterpret_cast<const float*>(place(tile, line, at / kPerChunk<E>));
        return ptx::round_to_tf32(chunk[at % kPerChunk<E>]);
    }
    __device__ static __forceinline__ void round(unsigned (&words)[4]) {
        if constexpr (sizeof(E) == 4) {
#pragma unroll
            for (unsigned& word : words) word = ptx::round_to_tf32(__uint_as_float(word));
        }
    }
};

// Warps share the sums as kWarpRows x kWarpColumns rectangles.
template <class E, Layout kLayoutA, Layout kLayoutB, int kRows, int kColumns, int kDepth,
          int kWarpRows, int kWarpColumns, int kStages>
struct TileProduct {
    using A = SharedTile<E, kLayoutA, kRows, kDepth>;
    using B = SharedTile<E, kLayoutB, kColumns, kDepth>;
    static constexpr int kThreads = 32 * kWarpRows * kWarpColumns;
    static constexpr int kStageBytes = A::kBytes + B::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
    static constexpr int kHigh = kRows / kWarpRows / 16, kWide = kColumns / kWarpColumns / 8;
    static constexpr int kStep = 2 * kPerChunk<E>;  // k of one instruction
    static_assert(kHigh * 16 * kWarpRows == kRows && kWide * 8 * kWarpColumns == kColumns);
    static_assert(kWide % 2 == 0 && kDepth % kStep == 0);

    float sums[kHigh][kWide][4];

    __device__ __forceinline__ TileProduct() {
#pragma unroll
        for (int i = 0; i < kHigh; ++i) {
#pragma unroll
            for (int j = 0; j < kWide; ++j) {
#pragma unroll
                for (int q = 0; q < 4; ++q) sums[i][j][q] = 0.0f;
            }
        }
    }

    // a(step) and b(step) return the sources of a step's tiles, step by step. All threads of the
    // block call this; shared memory may be used again after a __syncthreads().
    template <class SourceA, class SourceB>
    __device__ __forceinline__ void add(unsigned char* shared, int steps, const SourceA& a,
                                        const SourceB& b) {
        constexpr int last_stage = kSharedBytes - kStageBytes;
        const auto fetch = [&](int step, int stage) {
            if (step < steps) {
                A::template fetch<kThreads>(shared + stage, a(step));
                B::template fetch<kThreads>(shared + stage + A::kBytes, b(step));
            }
            ptx::async_commit();  // also of nothing: groups are counted
        };
        for (int step = 0; step < kStages - 1; ++step) fetch(step, step * kStageBytes);
        int stage = 0;
        for (int step = 0; step < steps; ++step) {
            ptx::async_wait<kStages - 2>();
            __syncthreads();  // all copies of this step are there, and nobody reads the last one
            fetch(step + kStages - 1, stage == 0 ? last_stage : stage - kStageBytes);
            multiply(shared + stage);
            stage = stage == last_stage ? 0 : stage + kStageBytes;
        }
    }

    // Calls visit(row, column, run) for kRun neighbouring sums of a row at a time, which are in
    // shared memory at `run`. Nobody else may use that until a __syncthreads().
    template <int kRun, class Visit>
    __device__ __forceinline__ void visit_runs(unsigned char* shared, const Visit& visit) const {
        constexpr int columns = kColumns / kWarpColumns, stride = columns + 8;  // no bank twice
        constexpr int runs = 16 * columns / kRun;
        static_assert(kThreads / 32 * 16 * stride * 4 <= kSharedBytes && columns % kRun == 0);
        const int lane = static_cast<int>(threadIdx.x) % 32;
        float* slab = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * (16 * stride);
        __syncthreads();  // nobody reads the last step any more
#pragma unroll 1
        for (int high = 0; high < kHigh; ++high) {
#pragma unroll
            for (int i = 0; i < kHigh; ++i) {  // registers have no index
                if (i != high) continue;
#pragma unroll
                for (int j = 0; j < kWide; ++j) {
                    float* pair = slab + lane / 4 * stride + j * 8 + lane % 4 * 2;
                    pair[0] = sums[i][j][0];
                    pair[1] = sums[i][j][1];
                    pair[8 * stride] = sums[i][j][2];
                    pair[8 * stride + 1] = sums[i][j][3];
                }
            }
            __syncwarp();  // the slab is there
#pragma unroll 1
            for (int at = lane; at < runs; at += 32) {
                const int row = at / (columns / kRun), column = at % (columns / kRun) * kRun;
                visit(first_row() + high * 16 + row, first_column() + column,
                      slab + row * stride + column);
            }
            __syncwarp();  // the slab may be written again
        }
    }

  private:
    __device__ static __forceinline__ int first_row() {
        return static_cast<int>(threadIdx.x) / 32 % kWarpRows * (kRows / kWarpRows);
    }
    __device__ static __forceinline__ int first_column() {
        return static_cast<int>(threadIdx.x) / 32 / kWarpRows * (kColumns / kWarpColumns);
    }

    __device__ __forceinline__ void multiply(unsigned char* stage) {
#pragma unroll
        for (int k = 0; k < kDepth; k += kStep) {
            unsigned a[kHigh][4];
#pragma unroll
            for (int i = 0; i < kHigh; ++i) A::read_rows(stage, first_row() + 16 * i, k, a[i]);
#pragma unroll
            for (int j = 0; j < kWide; j += 2) {
                unsigned b[2][2];
                B::read_columns(stage + A::kBytes, first_column() + 8 * j, k, b[0], b[1]);
#pragma unroll
                for (int i = 0; i < kHigh; ++i) {
                    ptx::multiply<E>(sums[i][j], a[i], b[0]);
                    ptx::multiply<E>(sums[i][j + 1], a[i], b[1]);
                }
            }
        }
    }
};

}  // namespace dmao
