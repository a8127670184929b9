// block_attention, backward for parameters: gradients of rel_pos along diagonals of tiles, where
// distances are the same, those of both biases, and the second passes that add up.
//
// Floor, for n visible pairs: 8 D n flops. Computed are 10 with bands, and sums over all distances
// of a tile for each of its queries: 12.
#pragma once

#include "block_attention_keys.cuh"

namespace dmao::attention {

template <class E, int kWidth>
struct Positions : Squares<E, kWidth, true, AttentionPass::positions> {
    using Base = Squares<E, kWidth, true, AttentionPass::positions>;
    static constexpr int kScoresBytes =
        attention_scores_bytes(Base::kSide, Base::kBand, Base::kElement);
    static constexpr int kHigh = Base::kBand / 16 / Base::kGroups;
    static_assert(Base::kSharedBytes ==
                  5 * Base::kTileBytes + Base::kBand * Base::kLine + kScoresBytes);
};

// A block owns a diagonal, a head and a part of the utterances. The first and the last diagonal
// stand for all beyond them as well, where distances are all clamped to one row.
template <class E, int kWidth>
__global__ void __launch_bounds__(Positions<E, kWidth>::kThreads, 2)
    position_gradients(const AttentionBackward problem, const AttentionDiagonals diagonals) {
    using Use = Positions<E, kWidth>;
    constexpr int kSide = Use::kSide, kBand = Use::kBand, kThreads = Use::kThreads;
    constexpr int kHigh = Use::kHigh, kPartKeys = Use::kPartKeys;
    using Tile = Scores<E, kSide, kBand>;
    constexpr int kScoreWidth = Tile::kChunks * kPerChunk<E>;
    DMAO_DYNAMIC_SHARED(shared);
    const Attention& a = problem.attention;
    const int head = static_cast<int>(blockIdx.y);
    const int own = diagonals.first + static_cast<int>(blockIdx.x);

    unsigned char* const content = shared;
    unsigned char* const position = content + Use::kTileBytes;
    unsigned char* const gradients = position + Use::kTileBytes;
    unsigned char* const keys = gradients + Use::kTileBytes;
    unsigned char* const values = keys + Use::kTileBytes;
    unsigned char* const band = values + Use::kTileBytes;
    unsigned char* const grad_scores = band + kBand * Use::kLine;
    const Rows<E> distances(a.rel_pos, head, 0);
    fetch_band<E, kBand, kWidth, kThreads>(band, distances, (own - 1) * kSide + 1, a.reach,
                                           a.width);
    ptx::async_commit();
    // Row m has scores in the columns from kSide - 1 - m on; the others stay zero.
    for (int at = static_cast<int>(threadIdx.x); at < kSide * Tile::kChunks; at += kThreads) {
        *reinterpret_cast<uint4*>(grad_scores + at * kChunkBytes) = {};
    }

    const int group = warp() % Use::kGroups, part = warp() / Use::kGroups;
    const bool biased = a.position_bias != nullptr && part == 0;
    float sums[kHigh][Use::kPartWidth / 8][4], totals[kHigh][4] = {};
    clear(sums);

    const int block = static_cast<int>(blockIdx.z), parts = static_cast<int>(gridDim.z);
    const int last = static_cast<int>(std::int64_t{a.utterances} * (block + 1) / parts);
    for (int u = static_cast<int>(std::int64_t{a.utterances} * block / parts); u < last; ++u) {
        const Span span = span_of(a, u, head);
        const Rows<E> q(a.q, head, span.first), k(a.k, head, span.first), v(a.v, head, span.first);
        const Rows<E> grad_out(problem.grad_out, head, span.first);
        const int tiles = (span.length + kSide - 1) / kSide;
        const int begin =
            own == diagonals.first ? smaller(larger(1 - tiles, diagonals.least), own) : own;
        const int end =
            own == diagonals.last ? larger(smaller(tiles - 1, diagonals.greatest), own) : own;
        for (int offset = begin; offset <= end; ++offset) {
            for (int tile = larger(-offset, 0); tile < smaller(tiles, tiles - offset); ++tile) {
                const int query = tile * kSide, key = (tile + offset) * kSide;
                const Range seen = all_of(a, query, kSide, span.length, keys_of);
                const Range both{larger(seen.begin, key), smaller(seen.end, key + kSide)};
                const Walk<kSide, kSide> walk(a, a.key_lines, query, both);
                if (walk.done()) continue;
                fetch_rows<E, kSide, kWidth, kThreads>(content, q, query, span.length, a.width);
                fetch_rows<E, kSide, kWidth, kThreads>(gradients, grad_out, query, span.length,
                                                       a.width);
                fetch_rows<E, kSide, kWidth, kThreads>(keys, k, key, span.length, a.width);
                fetch_rows<E, kSide, kWidth, kThreads>(values, v, key, span.length, a.width);
                ptx::async_commit();
                ptx::async_wait<0>();
                __syncthreads();
                add_biases<E, kSide, kWidth, kThreads>(a, head, content, position);
                __syncthreads();
                if (part < Use::kScoreParts) {
                    const int row = 16 * group, column = part * kPartKeys;
                    float scores[1][kPartKeys / 8][4], products[1][kPartKeys / 8][4];
                    differentiate_again<E, kWidth, true, kPartKeys>(
                        problem, span, head, scores, products, content, position, gradients, row,
                        query + row, keys, values, column, key + column, band,
                        kSide - 16 - row + column, walk.live(group) >> column / 16);
#pragma unroll
                    for (int j = 0; j < kPartKeys / 8; ++j) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const int line = row + row_of_lane(i / 2);
                            const int place = column + 8 * j + column_of_lane() + i % 2;
                            element<E, kScoreWidth>(grad_scores, line, place + kSide - 1 - line) =
                                ptx::narrow<E>(scores[0][j][i]);
                        }
                    }
                }
                __syncthreads();
                add_across<E, Tile, kSide, kWidth, kUnrolledOfSquares<E, kWidth, true>>(
                    sums, totals, biased, grad_scores, 16 * kHigh * group, position,
                    part * Use::kPartWidth);
                __syncthreads();
            }
        }
    }
    ptx::async_wait<0>();
    __syncthreads();

    const std::int64_t line =
        (std::int64_t{block} * gridDim.y + head) * gridDim.x + blockIdx.x;  // of this block
    float* const own_totals = reinterpret_cast<float*>(content);
#pragma unroll
    for (int h = 0; h < kHigh; ++h) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int distance = 16 * (kHigh * group + h) + row_of_lane(half);
            if (biased && lane() % 4 == 0) own_totals[distance] = totals[h][2 * half];
            float* const to = problem.position_sums + (line * kBand + distance) * a.width;
#pragma unroll
            for (int j = 0; j < Use::kPartWidth / 8; ++j) {
                const int place = part * Use::kPartWidth + 8 * j + column_of_lane();
                if (place < a.width) to[place] = sums[h][j][2 * half] * a.scale;
                if (place + 1 < a.width) to[place + 1] = sums[h][j][2 * half + 1] * a.scale;
            }
        }
    }
    __syncthreads();
    if (a.position_bias != nullptr) {
        const std::int64_t program =
            std::int64_t{head} * gridDim.x * gridDim.z + block * gridDim.x + blockIdx.x;
        store_weighted_lines<E, kBand, kWidth, kThreads>(
            band, own_totals, a.scale, problem.position_bias_sums + program * a.width, a.width);
    }
}

inline constexpr int kSumThreads = 128;

// A row of the gradient of rel_pos, of one head: what `position_gradients` left for its distances.
// Block b of `side` distances is the first of diagonal b and the second of diagonal b - 1.
template <class E>
__global__ void __launch_bounds__(kSumThreads)
    sum_positions(const AttentionBackward problem, AttentionDiagonals diagonals, int parts,
                  int side) {
    const Attention& a = problem.attention;
    const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
    const int least = (diagonals.first - 1) * side + 1, last = 2 * a.reach;
    const int all = diagonals.count(), count = (all + 1) * side;  // distances with sums
    const int at = row - a.reach - least;
    const int begin = row == 0 ? 0 : larger(at, 0),
              end = row == last ? count : smaller(at + 1, count);
    for (int place = static_cast<int>(threadIdx.x); place < a.width; place += kSumThreads) {
        float sum = 0.0f;
        for (int part = 0; part < parts; ++part) {
            const float* const blocks =
                problem.position_sums +
                (std::int64_t{part} * a.heads + head) * all * (2 * side) * a.width + place;
            for (int i = begin; i < end; ++i) {
                const float* const first =
                    blocks + std::int64_t{i / side * 2 * side + i % side} * a.width;
                if (i < all * side) sum += first[0];
                if (i >= side) sum += first[-side * a.width];
            }
        }
        static_cast<E*>(
            problem.grad_rel_pos)[(std::int64_t{row} * a.heads + head) * a.width + place] =
            ptx::narrow<E>(sum);
    }
}

// The gradient of a bias: the sum over `count` lines that blocks left for each head.
template <class E>
__global__ void __launch_bounds__(kSumThreads)
    sum_bias(const float* sums, void* gradient, int count, int width) {
    DMAO_SHARED(float, partial, kSumThreads);
    const int place = static_cast<int>(blockIdx.x) * 32 + lane();
    const std::int64_t head = blockIdx.y;
    float sum = 0.0f;
    if (place < width) {
        for (int i = static_cast<int>(threadIdx.x) / 32; i < count; i += kSumThreads / 32) {
            sum += sums[(head * count + i) * width + place];
        }
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= 32 || place >= width) return;
    for (int i = 1; i < kSumThreads / 32; ++i) sum += partial[32 * i + lane()];
    static_cast<E*>(gradient)[head * width + place] = ptx::narrow<E>(sum);
}

}  // namespace dmao::attention
