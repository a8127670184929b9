// A product of matrices and a sum of rows, which use all that cuda_on_host has, with faults to be
// planted by -DPLANTED_<FAULT>: tests/emu/test_cuda_on_host.py wants each of them to be noticed.
#pragma once

#include "ptx.cuh"

namespace dmao {

inline constexpr int kTile = 64, kDepth = 32, kStages = 3, kProductThreads = 128;
inline constexpr int kStageBytes = 2 * kTile * kDepth * 2;

// Where the 16 bytes `chunk` of a row of kDepth 16-bit elements are: eight neighbouring rows have
// them in different banks.
__device__ inline unsigned char* chunk_of(unsigned char* tile, int row, int chunk) {
#if defined(PLANTED_CONFLICTS)
    return tile + (row * 4 + chunk) * 16;
#else
    return tile + (row * 4 + (chunk ^ (row / 2 % 4))) * 16;
#endif
}

// c [m, n] = a [m, k] b [n, k]^T; k a multiple of 8. Four warps of 32 x 32 sums.
template <class E>
__global__ void __launch_bounds__(kProductThreads)
    product(const E* a, const E* b, float* c, int m, int n, int k) {
    DMAO_DYNAMIC_SHARED(shared);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int first_row = static_cast<int>(blockIdx.y) * kTile;
    const int first_column = static_cast<int>(blockIdx.x) * kTile;
    const auto load_tile = [&](unsigned char* tile, const E* matrix, int first, int rows, int k0) {
        for (int i = thread; i < kTile * 4; i += kProductThreads) {
            const int row = first + i / 4, column = k0 + i % 4 * 8;
#if defined(PLANTED_BOUND)
            const bool there = row <= rows && column < k;
#else
            const bool there = row < rows && column < k;
#endif
            const E* source = there ? matrix + static_cast<std::int64_t>(row) * k + column : matrix;
            ptx::async_copy(chunk_of(tile, i / 4, i % 4), source, there ? 16 : 0);
        }
    };
    const auto load_stage = [&](int step) {
        unsigned char* stage = shared + step % kStages * kStageBytes;
#if defined(PLANTED_OVERRUN)
        stage += 64;
#endif
        load_tile(stage, a, first_row, m, step * kDepth);
        load_tile(stage + kStageBytes / 2, b, first_column, n, step * kDepth);
    };

    float sums[2][4][4] = {};
    const int steps = (k + kDepth - 1) / kDepth;
    for (int step = 0; step < kStages - 1; ++step) {
        if (step < steps) load_stage(step);
        ptx::async_commit();
    }
    for (int step = 0; step < steps; ++step) {
#if defined(PLANTED_WEAK_WAIT)
        ptx::async_wait<kStages - 1>();
#else
        ptx::async_wait<kStages - 2>();
#endif
#if defined(PLANTED_DIVERGENT_BARRIER)
        if (warp == 0) {
            __syncthreads();
        } else {
            __syncthreads();
        }
#elif !defined(PLANTED_NO_BARRIER)
        __syncthreads();
#endif
        if (step + kStages - 1 < steps) load_stage(step + kStages - 1);
        ptx::async_commit();
        unsigned char* left = shared + step % kStages * kStageBytes;
        unsigned char* right = left + kStageBytes / 2;
#if defined(PLANTED_OVERRUN)
        left += 64;
        right += 64;
#endif
        for (int part = 0; part < kDepth / 16; ++part) {
            unsigned words[2][4], columns[4][2];
            for (int i = 0; i < 2; ++i) {
                const int row = warp % 2 * 32 + i * 16 + lane % 16;
                ptx::load_matrices(words[i], chunk_of(left, row, part * 2 + lane / 16));
            }
            for (int j = 0; j < 4; j += 2) {
                const int row = warp / 2 * 32 + j * 8 + lane % 8 + lane / 16 * 8;
                unsigned pair[4];
                ptx::load_matrices(pair, chunk_of(right, row, part * 2 + lane / 8 % 2));
                for (int q = 0; q < 4; ++q) columns[j + q / 2][q % 2] = pair[q];
            }
            for (int i = 0; i < 2; ++i) {
                for (int j = 0; j < 4; ++j) ptx::multiply<E>(sums[i][j], words[i], columns[j]);
            }
        }
    }
    ptx::async_wait<0>();
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
            for (int q = 0; q < 4; ++q) {
#if defined(PLANTED_LANES)
                const int row = lane / 4 + q % 2 * 8, column = 2 * (lane % 4) + q / 2;
#else
                const int row = lane / 4 + q / 2 * 8, column = 2 * (lane % 4) + q % 2;
#endif
                const int y = first_row + warp % 2 * 32 + i * 16 + row;
                const int x = first_column + warp / 2 * 32 + j * 8 + column;
                if (y < m && x < n) c[static_cast<std::int64_t>(y) * n + x] = sums[i][j][q];
            }
        }
    }
}

// total += the sum of x [n]; each block adds up 256 elements.
__global__ void __launch_bounds__(256) sum_up(const unsigned* x, unsigned* total, int n) {
    DMAO_SHARED(unsigned, parts, 8);
    const int thread = static_cast<int>(threadIdx.x);
    const int at = static_cast<int>(blockIdx.x * blockDim.x) + thread;
    unsigned sum = at < n ? x[at] : 0;
#if defined(PLANTED_MASK)
    const unsigned mask = 0x0000FFFF;
#else
    const unsigned mask = 0xFFFFFFFF;
#endif
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
    if (thread % 32 == 0) parts[thread / 32] = sum;
    __syncthreads();
    if (thread >= 32) return;
    sum = thread < 8 ? parts[thread] : 0;
#if defined(PLANTED_DIVERGENT_WARP)
    if (thread < 16) __syncwarp();
#endif
    for (int step = 4; step > 0; step /= 2) sum += __shfl_down_sync(0xFFFFFFFF, sum, step);
#if defined(PLANTED_NOT_ATOMIC)
    if (thread == 0) *total += sum;
    __syncthreads();  // which orders the threads of a block, not blocks
#else
    if (thread == 0) atomicAdd(total, sum);
#endif
#if defined(PLANTED_DEADLOCK)
    if (thread < 16) __shfl_sync(0xFFFFFFFF, sum, 0);
#endif
}

}  // namespace dmao
