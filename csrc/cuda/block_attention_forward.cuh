// block_attention, forward: outputs of a tile of queries, and the logarithms (of base 2) of their
// sums of exponentials. Scores and weights stay in registers.
//
// Floor, for n visible pairs: 4 D n flops (6 with relative positions). Read: q once, k and v (and
// the rows of rel_pos for a band) once per tile of queries, mostly from L2; written: the output and
// 4 bytes a row and head.
#pragma once

#include "block_attention_tile.cuh"
#include "block_attention_tiles.h"

namespace dmao::attention {

// A tile of the other side in shared memory, and the next one on its way where there is room.
//     for (Walk ...; !walk.done();) stages.turn(walk, fetch, compute)
// fetch(stage, tile) starts copies, compute(stage, tile) uses them; all threads of the block.
template <int kStages, class Walk, class Fetch, class Compute>
__device__ __forceinline__ void go_through(Walk& walk, const Fetch& fetch, const Compute& compute) {
    int stage = 0;
    if (!walk.done()) fetch(0, walk.tile());
    ptx::async_commit();
    while (!walk.done()) {
        ptx::async_wait<0>();
        __syncthreads();  // the tile is there, and nobody uses the one before
        Walk here = walk;
        walk.seek(walk.tile() + 1);
        if constexpr (kStages == 2) {
            if (!walk.done()) fetch(1 - stage, walk.tile());
            ptx::async_commit();
        }
        compute(stage, here);
        if constexpr (kStages == 1) {
            __syncthreads();
            if (!walk.done()) fetch(0, walk.tile());
            ptx::async_commit();
        } else {
            stage = 1 - stage;
        }
    }
    ptx::async_wait<0>();
}

// How the warps of a tile share its queries: 16 kHigh rows each and, where there are more warps
// than rows for them, a part of the width. Scores are computed by all warps of a row.
template <int kQueries, int kWarps, int kWidth>
struct Shares {
    static constexpr int kHigh = kQueries > 16 * kWarps ? kQueries / 16 / kWarps : 1;
    static constexpr int kGroups = kQueries / 16 / kHigh, kParts = kWarps / kGroups;
    static constexpr int kPartWidth = kWidth / kParts;
    static_assert(kHigh * kGroups * 16 == kQueries && kGroups * kParts == kWarps);
    static_assert(kPartWidth % 16 == 0);
};

// A tile of keys, their values, and the rows of rel_pos between them and the queries from `query`.
template <class E, int kWidth, bool kPositions, class Use>
__device__ __forceinline__ void fetch_keys(unsigned char* own, const Rows<E>& keys,
                                           const Rows<E>& values, const Rows<E>& distances,
                                           const Attention& a, int length, int query, int key) {
    constexpr int kKeys = Use::kKeys, kThreads = Use::kThreads;
    fetch_rows<E, kKeys, kWidth, kThreads>(own, keys, key, length, a.width);
    fetch_rows<E, kKeys, kWidth, kThreads>(own + kKeys * Use::kLine, values, key, length, a.width);
    if constexpr (kPositions) {
        fetch_band<E, Use::kBand, kWidth, kThreads>(own + 2 * kKeys * Use::kLine, distances,
                                                    key - query - Use::kQueries + 1, a.reach,
                                                    a.width);
    }
}

template <class E, int kWidth, bool kPositions>
struct Forward {
    static constexpr int kElement = static_cast<int>(sizeof(E));
    static constexpr AttentionTile kTile =
        attention_tile(AttentionPass::forward, kWidth, kElement, kPositions);
    static constexpr int kQueries = kTile.queries, kKeys = kTile.keys, kStages = kTile.stages;
    static constexpr int kThreads = 32 * kTile.warps;
    using Own = Shares<kQueries, kTile.warps, kWidth>;
    static constexpr int kBand = kQueries + kKeys, kLine = kWidth * kElement;
    static constexpr int kStageBytes = (2 * kKeys + (kPositions ? kBand : 0)) * kLine;
    static constexpr int kSharedBytes =
        attention_shared_bytes(AttentionPass::forward, kWidth, kElement, kPositions);
    static_assert(kSharedBytes == (kPositions ? 2 : 1) * kQueries * kLine + kStages * kStageBytes);
};

template <class E, int kWidth, bool kPositions>
__global__ void __launch_bounds__(Forward<E, kWidth, kPositions>::kThreads, 2)
    forward(const AttentionForward problem) {
    using Use = Forward<E, kWidth, kPositions>;
    constexpr int kHigh = Use::Own::kHigh, kKeys = Use::kKeys, kQueries = Use::kQueries;
    constexpr int kGroups = kKeys / 8, kThreads = Use::kThreads;
    DMAO_DYNAMIC_SHARED(shared);
    const Attention& a = problem.attention;
    const int head = static_cast<int>(blockIdx.y);
    int tile;
    const Span span = find_span(a, static_cast<int>(blockIdx.x), kQueries, head, tile);
    const int query = tile * kQueries;
    if (query >= span.owned) return;

    unsigned char* const content = shared;
    unsigned char* const position = kPositions ? shared + kQueries * Use::kLine : nullptr;
    unsigned char* const stages = shared + (kPositions ? 2 : 1) * kQueries * Use::kLine;
    const Rows<E> q(a.q, head, span.first), k(a.k, head, span.first), v(a.v, head, span.first);
    const Rows<E> distances(a.rel_pos, head, 0);
    const auto fetch = [&](int stage, int key_tile) {
        fetch_keys<E, kWidth, kPositions, Use>(stages + stage * Use::kStageBytes, k, v, distances,
                                               a, span.length, query, key_tile * kKeys);
    };
    fetch_rows<E, kQueries, kWidth, kThreads>(content, q, query, span.length, a.width);
    ptx::async_commit();
    if (kPositions || a.content_bias != nullptr) {
        ptx::async_wait<0>();
        __syncthreads();
        add_biases<E, kQueries, kWidth, kThreads>(a, head, content, position);
    }

    constexpr int kPartWidth = Use::Own::kPartWidth;
    const int part = warp() / Use::Own::kGroups, place = part * kPartWidth;
    const int row = 16 * kHigh * (warp() % Use::Own::kGroups);  // the first of this warp
    const float factor = a.scale * kLog2E;
    Sight sight[kHigh];
#pragma unroll
    for (int h = 0; h < kHigh; ++h) sight[h] = Sight(a, query + row + 16 * h, span.length);
    Kept<kHigh> dropout;
    float sums[kHigh][kPartWidth / 8][4], top[kHigh][2], total[kHigh][2];
    clear(sums);
#pragma unroll
    for (int h = 0; h < kHigh; ++h) {
        top[h][0] = top[h][1] = -INFINITY;
        total[h][0] = total[h][1] = 0.0f;
    }

    using Visits = Walk<kQueries, kKeys>;
    Visits walk(a, a.key_lines, query, all_of(a, query, kQueries, span.length, keys_of));
    go_through<Use::kStages>(walk, fetch, [&](int stage, const Visits& here) {
        unsigned char* const own = stages + stage * Use::kStageBytes;
        const int key = here.tile() * kKeys;
        if (a.seed != nullptr) dropout.draw(a, span, head, query + row, key);
        float scores[kHigh][kGroups][4];
        score<E, kWidth, kPositions>(scores, content, position, row, own, 0,
                                     own + 2 * kKeys * Use::kLine, kQueries - 16 - row);
#pragma unroll
        for (int h = 0; h < kHigh; ++h) {
#pragma unroll
            for (int j = 0; j < kGroups; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) scores[h][j][i] *= factor;
            }
            sight[h].apply(a, scores[h], key, here.live(row / 16 + h),
                           [](float& hidden) { hidden = -INFINITY; });
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float largest = top[h][half];
#pragma unroll
                for (int j = 0; j < kGroups; ++j) {
                    largest =
                        fmaxf(largest, fmaxf(scores[h][j][2 * half], scores[h][j][2 * half + 1]));
                }
                largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 2));
                const float shift = largest == -INFINITY ? 0.0f : largest;  // nothing seen so far
                const float fade = ptx::exp2(top[h][half] - shift);
                top[h][half] = largest;
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < kGroups; ++j) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[h][j][i] = ptx::exp2(scores[h][j][i] - shift);
                        sum += scores[h][j][i];
                    }
                }
                total[h][half] = total[h][half] * fade + sum;  // of this lane's columns
#pragma unroll
                for (int j = 0; j < kPartWidth / 8; ++j) {
                    sums[h][j][2 * half] *= fade;
                    sums[h][j][2 * half + 1] *= fade;
                }
            }
            if (a.seed != nullptr) {
#pragma unroll
                for (int j = 0; j < kGroups; ++j) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        scores[h][j][i] =
                            dropout.kept(h, key, j, i) ? scores[h][j][i] * a.keep_factor : 0.0f;
                    }
                }
            }
        }
        add_weighted<E, kWidth>(sums, scores, own + kKeys * Use::kLine, 0, place);
    });

    // The queries are no longer needed: their place is where its outputs pass.
    float* const lse = problem.lse + std::int64_t{head} * a.rows + span.first;
#pragma unroll
    for (int h = 0; h < kHigh; ++h) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = total[h][half];
            sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
            sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
            total[h][half] = sum;
            const int own = query + row + 16 * h + row_of_lane(half);
            if (part == 0 && lane() % 4 == 0 && own < span.owned) {
                lse[own] = sum == 0.0f ? -INFINITY : top[h][half] + log2f(sum);  // NaN stays
            }
        }
    }
    __syncthreads();
    put_sums<E, kWidth>(content, row, place, sums, [&](int h, int half) {
        return total[h][half] == 0.0f ? 0.0f : 1.0f / total[h][half];
    });
    __syncwarp();
    const std::int64_t stride = std::int64_t{a.heads} * a.width;
    store_lines<E, kWidth, 16 * kHigh, kPartWidth / kPerChunk<E>>(
        content, row, place / kPerChunk<E>,
        static_cast<E*>(problem.out) + span.first * stride + head * a.width, stride, query + row,
        span.owned, a.width);
}

}  // namespace dmao::attention
