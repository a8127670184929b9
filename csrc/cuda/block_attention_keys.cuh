// block_attention, backward by keys: gradients of a tile of keys and values, and what it adds to
// the gradient of content_bias: the sums of each key's gradients of scores, times the key.
//
// Floor, for n visible pairs: 8 D n flops (10 with relative positions). Scores are computed in rows
// of queries, as in the other passes; their sums over queries then go across them, by way of
// shared memory.
#pragma once

#include "block_attention_queries.cuh"

namespace dmao::attention {

// What the passes by keys and positions share: squares of scores, whose rows of 16 queries are
// dealt to warps (several for a row where it is long enough), and then other rows and columns of
// the sums.
template <class E, int kWidth, bool kPositions, AttentionPass pass>
struct Squares {
    static constexpr int kElement = static_cast<int>(sizeof(E));
    static constexpr AttentionTile kTile = attention_tile(pass, kWidth, kElement, kPositions);
    static constexpr int kSide = kTile.queries;
    using Own = Shares<kSide, kTile.warps, kWidth>;
    static constexpr int kGroups = Own::kGroups, kParts = Own::kParts;  // parts: of sums
    static constexpr int kThreads = 32 * kTile.warps, kLine = kWidth * kElement;
    static constexpr int kBand = 2 * kSide, kTileBytes = kSide * kLine;
    static constexpr int kScoreParts = kParts < kGroups ? kParts : kGroups;
    static constexpr int kPartKeys = kSide / kScoreParts;  // of a warp, in scores
    static constexpr int kPartWidth = Own::kPartWidth;
    static constexpr int kSharedBytes = attention_shared_bytes(pass, kWidth, kElement, kPositions);
    static_assert(kTile.keys == kSide && Own::kHigh == 1);
};

// With positions registers are scarce.
template <class E, int kWidth, bool kPositions>
inline constexpr int kUnrolledOfSquares = kPositions ? 2 : kUnrolledSteps<E, kWidth>;

// Of 16 queries and kKeys keys of one warp.
template <class E, int kWidth, bool kPositions, int kKeys>
__device__ __forceinline__ void differentiate_again(
    const AttentionBackward& problem, const Span& span, int head, float (&scores)[1][kKeys / 8][4],
    float (&products)[1][kKeys / 8][4], unsigned char* content, unsigned char* position,
    unsigned char* gradients, int row, int query, unsigned char* keys, unsigned char* values,
    int column, int key, unsigned char* band, int distance, unsigned live) {
    constexpr int kUnrolled = kUnrolledOfSquares<E, kWidth, kPositions>;
    const Attention& a = problem.attention;
    Kept<1> dropout;
    if (a.seed != nullptr) dropout.draw(a, span, head, query, key);
    score<E, kWidth, kPositions, kUnrolled>(scores, content, position, row, keys, column, band,
                                            distance);
    clear(products);
    add_products<E, kWidth, kUnrolled>(products, gradients, row, values, column);
    float log_sums[2] = {}, inner[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int own = query + row_of_lane(half);
        if (own >= span.length) continue;
        const std::int64_t line = std::int64_t{head} * a.rows + span.first + own;
        log_sums[half] = problem.lse[line];
        inner[half] = problem.inner[line];
    }
    differentiate(a, scores[0], products[0], log_sums, inner, Sight(a, query, span.length), dropout,
                  key, live);
}

// sums[place] = scale times the sum over lines of weights[line] times the line of a tile; by all
// threads, where `weights` are there for all of them.
template <class E, int kLines, int kWidth, int threads>
__device__ __forceinline__ void store_weighted_lines(unsigned char* tile, const float* weights,
                                                     float scale, float* sums, int width) {
    for (int place = static_cast<int>(threadIdx.x); place < width; place += threads) {
        float sum = 0.0f;
        for (int line = 0; line < kLines; ++line) {
            const float weight = weights[line];
            if (weight == 0.0f) continue;  // what nobody has used may be NaN
            sum += weight * ptx::widen(element<E, kWidth>(tile, line, place));
        }
        sums[place] = sum * scale;
    }
}

template <class E, int kWidth, bool kPositions>
struct Keys : Squares<E, kWidth, kPositions, AttentionPass::keys> {
    using Base = Squares<E, kWidth, kPositions, AttentionPass::keys>;
    static constexpr int kStages = Base::kTile.stages;
    static constexpr int kStageBytes =
        2 * Base::kTileBytes + (kPositions ? Base::kBand : 0) * Base::kLine;
    static constexpr int kScoresBytes =
        attention_scores_bytes(Base::kSide, Base::kSide, Base::kElement);
    static_assert(Base::kSharedBytes == (kPositions ? 3 : 2) * Base::kTileBytes +
                                            kStages * kStageBytes + 2 * kScoresBytes);
};

template <class E, int kWidth, bool kPositions>
__global__ void __launch_bounds__(Keys<E, kWidth, kPositions>::kThreads,
                                  256 / Keys<E, kWidth, kPositions>::kThreads)
    key_gradients(const AttentionBackward problem) {
    using Use = Keys<E, kWidth, kPositions>;
    constexpr int kSide = Use::kSide, kThreads = Use::kThreads, kPartKeys = Use::kPartKeys;
    using Tile = Scores<E, kSide, kSide>;
    constexpr int kScoreWidth = Tile::kChunks * kPerChunk<E>;
    DMAO_DYNAMIC_SHARED(shared);
    const Attention& a = problem.attention;
    const int head = static_cast<int>(blockIdx.y);
    int tile;
    const Span span = find_span(a, static_cast<int>(blockIdx.x), kSide, head, tile);
    const int key = tile * kSide;

    unsigned char* const keys = shared;
    unsigned char* const values = keys + Use::kTileBytes;
    unsigned char* const stages = values + Use::kTileBytes;
    unsigned char* const weights = stages + Use::kStages * Use::kStageBytes;
    unsigned char* const grad_scores = weights + Use::kScoresBytes;
    unsigned char* const position = kPositions ? grad_scores + Use::kScoresBytes : nullptr;
    const Rows<E> q(a.q, head, span.first), k(a.k, head, span.first), v(a.v, head, span.first);
    const Rows<E> grad_out(problem.grad_out, head, span.first), distances(a.rel_pos, head, 0);
    const auto fetch = [&](int stage, int query_tile) {
        unsigned char* const own = stages + stage * Use::kStageBytes;
        const int query = query_tile * kSide;
        fetch_rows<E, kSide, kWidth, kThreads>(own, q, query, span.length, a.width);
        fetch_rows<E, kSide, kWidth, kThreads>(own + Use::kTileBytes, grad_out, query, span.length,
                                               a.width);
        if constexpr (kPositions) {
            fetch_band<E, Use::kBand, kWidth, kThreads>(own + 2 * Use::kTileBytes, distances,
                                                        key - query - kSide + 1, a.reach, a.width);
        }
    };
    fetch_rows<E, kSide, kWidth, kThreads>(keys, k, key, span.length, a.width);
    fetch_rows<E, kSide, kWidth, kThreads>(values, v, key, span.length, a.width);
    ptx::async_commit();

    const int group = warp() % Use::kGroups, part = warp() / Use::kGroups;
    const bool biased = a.content_bias != nullptr && part == 0;
    float key_sums[1][Use::kPartWidth / 8][4], value_sums[1][Use::kPartWidth / 8][4];
    float key_totals[1][4] = {}, none[1][4];
    clear(key_sums);
    clear(value_sums);

    using Visits = Walk<kSide, kSide>;
    Visits walk(a, a.query_lines, key, all_of(a, key, kSide, span.length, queries_of));
    go_through<Use::kStages>(walk, fetch, [&](int stage, const Visits& here) {
        unsigned char* const content = stages + stage * Use::kStageBytes;
        unsigned char* const gradients = content + Use::kTileBytes;
        unsigned char* const band = gradients + Use::kTileBytes;
        const int query = here.tile() * kSide;
        if (kPositions || a.content_bias != nullptr) {
            add_biases<E, kSide, kWidth, kThreads>(a, head, content, position);
            __syncthreads();
        }
        const unsigned live = here.live_across(group);
        if (part < Use::kScoreParts) {
            const int row = 16 * group, column = part * kPartKeys;
            float scores[1][kPartKeys / 8][4], products[1][kPartKeys / 8][4];
            differentiate_again<E, kWidth, kPositions, kPartKeys>(
                problem, span, head, scores, products, content, position, gradients, row,
                query + row, keys, values, column, key + column, band, kSide - 16 - row + column,
                live >> column / 16);
            const auto one = [](int, int) { return 1.0f; };
            put_sums<E, kScoreWidth>(weights, row, column, products, one);
            put_sums<E, kScoreWidth>(grad_scores, row, column, scores, one);
        }
        __syncthreads();
        const int place = part * Use::kPartWidth;
        constexpr int kUnrolled = kUnrolledOfSquares<E, kWidth, kPositions>;
        add_across<E, Tile, kSide, kWidth, kUnrolled>(value_sums, none, false, weights, 16 * group,
                                                      gradients, place);
        add_across<E, Tile, kSide, kWidth, kUnrolled>(key_sums, key_totals, biased, grad_scores,
                                                      16 * group, content, place);
    });

    __syncthreads();
    float* const totals = reinterpret_cast<float*>(weights);
    if (biased && lane() % 4 == 0) {
        totals[16 * group + row_of_lane(0)] = key_totals[0][0];
        totals[16 * group + row_of_lane(1)] = key_totals[0][2];
    }
    __syncthreads();
    if (a.content_bias != nullptr) {
        const std::int64_t line = std::int64_t{head} * gridDim.x + blockIdx.x;
        store_weighted_lines<E, kSide, kWidth, kThreads>(
            keys, totals, a.scale, problem.content_sums + line * a.width, a.width);
        __syncthreads();
    }
    // The tiles of keys and values are no longer needed: that is where the gradients pass.
    const int row = 16 * group, place = part * Use::kPartWidth;
    put_sums<E, kWidth>(keys, row, place, key_sums, [&](int, int) { return a.scale; });
    put_sums<E, kWidth>(values, row, place, value_sums, [](int, int) { return 1.0f; });
    __syncwarp();
    const std::int64_t stride = std::int64_t{a.heads} * a.width;
    const std::int64_t first = span.first * stride + head * a.width;
    constexpr int kChunks = Use::kPartWidth / kPerChunk<E>;
    store_lines<E, kWidth, 16, kChunks>(keys, row, part * kChunks,
                                        static_cast<E*>(problem.grad_k) + first, stride, key + row,
                                        span.owned, a.width);
    store_lines<E, kWidth, 16, kChunks>(values, row, part * kChunks,
                                        static_cast<E*>(problem.grad_v) + first, stride, key + row,
                                        span.owned, a.width);
}

}  // namespace dmao::attention
