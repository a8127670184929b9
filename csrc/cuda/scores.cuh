// What an entry adds to the score of its component, and the way of the pieces' sums into the
// averages.
//
// Floor of the averages: one read of the sums, one number per 8192 entries of a tensor of few long
// runs, one per column and 32 rows of another one (cuts.h). That is little beside what was read for
// them, but for matrices of a single short row per piece (biases, gains): a sum for every entry.
#pragma once

#include <limits>

#include "pieces.cuh"

namespace dmao {

// |w g|, |g|, |w| or w g: a factor that does not count is one.
struct Scoring {
    bool weight, grad, absolute;
};

__device__ __forceinline__ float score_entry(const Scoring& scoring, float weight, float grad) {
    const float product = (scoring.weight ? weight : 1.0f) * (scoring.grad ? grad : 1.0f);
    return scoring.absolute ? fabsf(product) : product;
}

// A tensor [.., components, ..] of which the sums of pieces are there. In a table tensors stand in
// the order of `first`.
struct ScoredRange {
    std::int64_t sums;                   // where they begin
    std::int32_t rows, columns, stride;  // of a component's sums (SumsOfComponent)
    std::int32_t first, end;             // components of the averages
    std::int32_t reach;                  // greatest `end` of this and of all before
};

// Averages of all components, and what was found so far of the sums where they fill many tables.
struct Averages {
    float* ema;
    const float* inverse_count;
    const float* sums;
    float* carried;  // [2, components]: sum, and whether there is one
    std::int32_t components;
    float beta, rest;   // weights of the old average and of the mean
    bool begins, ends;  // whether this table is the first one, the last one
};

// The last range that begins at or before a component; -1: none.
__device__ __forceinline__ int last_range(const Table<ScoredRange>& table, int component) {
    int low = -1, high = table.count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (table.entries[middle].first <= component) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

inline constexpr int kAverageThreads = 256, kAverageBlocks = 4;  // of a multiprocessor

// Warps take components in turns: ema <- beta ema + rest sum inverse_count, where anything was
// scored and the mean is finite. In a fixed order.
static __global__ void __launch_bounds__(kAverageThreads)
    average_scores(DMAO_BY_VALUE(Table<ScoredRange>) table, Averages all) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warps = static_cast<int>(gridDim.x) * (kAverageThreads / 32);
    int component =
        static_cast<int>(blockIdx.x) * (kAverageThreads / 32) + static_cast<int>(threadIdx.x) / 32;
    for (; component < all.components; component += warps) {
        float sum = 0.0f;
        bool scored = false;
        for (int i = last_range(table, component); i >= 0; --i) {
            const ScoredRange& range = table.entries[i];
            if (range.reach <= component) break;
            if (range.end <= component) continue;
            scored = true;
            const float* own =
                all.sums + range.sums + std::int64_t{component - range.first} * range.columns;
            const std::uint32_t columns = static_cast<std::uint32_t>(range.columns);
            const std::uint32_t places = static_cast<std::uint32_t>(range.rows) * columns;
            for (std::uint32_t place = lane; place < places; place += 32) {
                sum += own[std::int64_t{place / columns} * range.stride + place % columns];
            }
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, step);
        if (lane != 0) continue;
        float* carried = all.carried + component;
        if (!all.begins && carried[all.components] != 0.0f) {
            sum += carried[0];
            scored = true;
        }
        if (!all.ends) {
            carried[0] = sum;
            carried[all.components] = scored ? 1.0f : 0.0f;
            continue;
        }
        const float mean = sum * all.inverse_count[component];
        if (scored && fabsf(mean) < std::numeric_limits<float>::infinity()) {
            all.ema[component] = all.beta * all.ema[component] + all.rest * mean;
        }
    }
}

}  // namespace dmao
