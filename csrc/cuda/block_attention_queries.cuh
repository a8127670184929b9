// block_attention, backward by queries: gradients of a tile of queries, and grad_out . out of each
// row, which the other passes read.
//
// Floor, for n visible pairs: 6 D n flops (10 with relative positions).
#pragma once

#include "block_attention_forward.cuh"

namespace dmao::attention {

// Weights of 16 queries after dropout, and in the place of `scores` the gradients of their scaled
// scores. products: of the queries' gradients with the values; log_sums, inner: of this lane's
// rows.
template <int kWide>
__device__ __forceinline__ void differentiate(const Attention& a, float (&scores)[kWide][4],
                                              float (&products)[kWide][4],
                                              const float (&log_sums)[2], const float (&inner)[2],
                                              const Sight& sight, const Kept<1>& dropout, int key,
                                              unsigned live) {
    const float factor = a.scale * kLog2E;
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            scores[j][i] = ptx::exp2(scores[j][i] * factor - log_sums[i / 2]);
        }
    }
    sight.apply(a, scores, key, live, [](float& hidden) { hidden = 0.0f; });
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float weight = scores[j][i];
            float keep = 1.0f;
            if (a.seed != nullptr) keep = dropout.kept(0, key, j, i) ? a.keep_factor : 0.0f;
            scores[j][i] = weight * (products[j][i] * keep - inner[i / 2]);
            products[j][i] = weight * keep;
        }
    }
}

template <class E, int kWidth, bool kPositions>
struct Queries {
    static constexpr int kElement = static_cast<int>(sizeof(E));
    static constexpr AttentionTile kTile =
        attention_tile(AttentionPass::queries, kWidth, kElement, kPositions);
    static constexpr int kQueries = kTile.queries, kKeys = kTile.keys, kStages = kTile.stages;
    static constexpr int kThreads = 32 * kTile.warps;
    static constexpr int kBand = kQueries + kKeys, kLine = kWidth * kElement;
    static constexpr int kStageBytes = (2 * kKeys + (kPositions ? kBand : 0)) * kLine;
    static constexpr int kOwn = kPositions ? 3 : 2;  // content, gradients of outputs, position
    static constexpr int kSharedBytes =
        attention_shared_bytes(AttentionPass::queries, kWidth, kElement, kPositions);
    static_assert(kSharedBytes == kOwn * kQueries * kLine + kStages * kStageBytes);
    using Own = Shares<kQueries, kTile.warps, kWidth>;
    static_assert(Own::kHigh == 1);
};

template <class E, int kWidth, bool kPositions>
__global__ void __launch_bounds__(Queries<E, kWidth, kPositions>::kThreads, 2)
    query_gradients(const AttentionBackward problem) {
    using Use = Queries<E, kWidth, kPositions>;
    constexpr int kKeys = Use::kKeys, kQueries = Use::kQueries, kThreads = Use::kThreads;
    DMAO_DYNAMIC_SHARED(shared);
    const Attention& a = problem.attention;
    const int head = static_cast<int>(blockIdx.y);
    int tile;
    const Span span = find_span(a, static_cast<int>(blockIdx.x), kQueries, head, tile);
    const int query = tile * kQueries;
    if (query >= span.owned) return;

    unsigned char* const content = shared;
    unsigned char* const gradients = shared + kQueries * Use::kLine;
    unsigned char* const position = kPositions ? shared + 2 * kQueries * Use::kLine : nullptr;
    unsigned char* const stages = shared + Use::kOwn * kQueries * Use::kLine;
    const Rows<E> q(a.q, head, span.first), k(a.k, head, span.first), v(a.v, head, span.first);
    const Rows<E> grad_out(problem.grad_out, head, span.first), out(problem.out, head, span.first);
    const Rows<E> distances(a.rel_pos, head, 0);
    const auto fetch = [&](int stage, int key_tile) {
        fetch_keys<E, kWidth, kPositions, Use>(stages + stage * Use::kStageBytes, k, v, distances,
                                               a, span.length, query, key_tile * kKeys);
    };
    fetch_rows<E, kQueries, kWidth, kThreads>(content, q, query, span.length, a.width);
    fetch_rows<E, kQueries, kWidth, kThreads>(gradients, grad_out, query, span.length, a.width);
    ptx::async_commit();
    if (kPositions || a.content_bias != nullptr) {
        ptx::async_wait<0>();
        __syncthreads();
        add_biases<E, kQueries, kWidth, kThreads>(a, head, content, position);
    }

    constexpr int kPartWidth = Use::Own::kPartWidth;
    const int part = warp() / Use::Own::kGroups, place = part * kPartWidth;
    const int row = 16 * (warp() % Use::Own::kGroups);
    const std::int64_t line = std::int64_t{head} * a.rows + span.first;
    float log_sums[2] = {}, inner[2] = {};
    for (int i = 0; i < 16; ++i) {  // a row at a time
        const int own = query + row + i;
        float sum = 0.0f;
        for (int at = lane(); own < span.length && at < a.width; at += 32) {
            sum += ptx::widen(grad_out.data[own * grad_out.stride + at]) *
                   ptx::widen(out.data[own * out.stride + at]);
        }
#pragma unroll
        for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, bit);
        if (i == row_of_lane(0)) inner[0] = sum;
        if (i == row_of_lane(1)) inner[1] = sum;
        if (part == 0 && lane() == 0 && own < span.owned) problem.inner[line + own] = sum;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int own = query + row + row_of_lane(half);
        if (own < span.length) log_sums[half] = problem.lse[line + own];
    }
    const Sight sight(a, query + row, span.length);
    Kept<1> dropout;
    float sums[1][kPartWidth / 8][4];
    clear(sums);

    using Visits = Walk<kQueries, kKeys>;
    Visits walk(a, a.key_lines, query, all_of(a, query, kQueries, span.length, keys_of));
    go_through<Use::kStages>(walk, fetch, [&](int stage, const Visits& here) {
        unsigned char* const own = stages + stage * Use::kStageBytes;
        unsigned char* const band = own + 2 * kKeys * Use::kLine;
        const int key = here.tile() * kKeys, distance = kQueries - 16 - row;
        if (a.seed != nullptr) dropout.draw(a, span, head, query + row, key);
        float scores[1][kKeys / 8][4], products[1][kKeys / 8][4];
        score<E, kWidth, kPositions>(scores, content, position, row, own, 0, band, distance);
        clear(products);
        add_products<E, kWidth>(products, gradients, row, own + kKeys * Use::kLine, 0);
        differentiate(a, scores[0], products[0], log_sums, inner, sight, dropout, key,
                      here.live(row / 16));
        add_weighted<E, kWidth>(sums, scores, own, 0, place);
        if constexpr (kPositions) {
            float shifted[1][kKeys / 8 + 2][4];
            unskew(scores[0], shifted[0]);
            add_weighted<E, kWidth>(sums, shifted, band, distance, place);
        }
    });

    __syncthreads();
    put_sums<E, kWidth>(content, row, place, sums, [&](int, int) { return a.scale; });
    __syncwarp();
    const std::int64_t stride = std::int64_t{a.heads} * a.width;
    store_lines<E, kWidth, 16, kPartWidth / kPerChunk<E>>(
        content, row, place / kPerChunk<E>,
        static_cast<E*>(problem.grad_q) + span.first * stride + head * a.width, stride, query + row,
        span.owned, a.width);
}

}  // namespace dmao::attention
