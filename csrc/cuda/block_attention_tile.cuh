// block_attention: rows in shared memory, products of tiles whose scores stay in registers, and
// relative positions.
//
// Relative positions. Between 16 queries from i on and keys from j on stand the distances from
// j - i - 15 on, one more for every further key: a band. Products of the queries with the rows of
// rel_pos for it are a tile [queries, distances], of which row m is needed from column 15 - m on:
// row m + 1 one column to the left of row m. In the layout of sums a row is in four neighbouring
// lanes, so that this is two shuffles for two elements, and no score ever goes through memory.
#pragma once

#include "block_attention_visible.cuh"
#include "products.cuh"

namespace dmao::attention {

inline constexpr float kLog2E = 1.4426950408889634f;

// Rows of q, k ... as lines, of which products go along (their sums over the width) or across.
template <class E, int kRows, int kWidth>
using Along = SharedTile<E, Layout::lines_of_k, kRows, kWidth>;
template <class E, int kRows, int kWidth>
using Across = SharedTile<E, Layout::lines_across, kWidth, kRows, 1>;
// Scores [queries, keys], of which products go across the queries.
template <class E, int kQueries, int kKeys>
using Scores = SharedTile<E, Layout::lines_across,
                          (kKeys < 4 * kPerChunk<E> ? 4 * kPerChunk<E> : kKeys), kQueries, 1>;

template <class E>
struct Rows {
    const E* data;
    std::int64_t stride;

    // Of one head, from row `first` on.
    __device__ __forceinline__ Rows(const AttentionRows& rows, int head, int first)
        : data(static_cast<const E*>(rows.data) + head * rows.head_stride +
               first * rows.row_stride),
          stride(rows.row_stride) {}

    __device__ __forceinline__ Chunk chunk(std::int64_t row, int chunk, int width,
                                           bool inside) const {
        const int left = width - chunk * kPerChunk<E>;
        if (!inside || left <= 0) return {data, 0};
        return {data + row * stride + chunk * kPerChunk<E>,
                smaller(left, kPerChunk<E>) * static_cast<int>(sizeof(E))};
    }
};

// The rows from `first` on, zeros from `end` on.
template <class E, int kRows, int kWidth, int threads>
__device__ __forceinline__ void fetch_rows(unsigned char* tile, const Rows<E>& rows, int first,
                                           int end, int width) {
    const auto source = [&](int line, int chunk) {
        return rows.chunk(first + line, chunk, width, first + line < end);
    };
    Along<E, kRows, kWidth>::template fetch<threads>(tile, source,
                                                     ptx::fresh(static_cast<int>(threadIdx.x)));
}

// The rows of rel_pos for kRows distances from `first` on.
template <class E, int kRows, int kWidth, int threads>
__device__ __forceinline__ void fetch_band(unsigned char* tile, const Rows<E>& rows, int first,
                                           int reach, int width) {
    const auto source = [&](int line, int chunk) {
        return rows.chunk(clamp(first + line + reach, 0, 2 * reach), chunk, width, true);
    };
    Along<E, kRows, kWidth>::template fetch<threads>(tile, source,
                                                     ptx::fresh(static_cast<int>(threadIdx.x)));
}

// --- Single elements

template <class E, int kWidth>
__device__ __forceinline__ E& element(unsigned char* tile, int line, int place) {
    constexpr int chunks = kWidth / kPerChunk<E>;
    return reinterpret_cast<E*>(
        chunk_in<chunks>(tile, line, place / kPerChunk<E>))[place % kPerChunk<E>];
}

// Two neighbouring elements, the first at an even place.
template <class E, int kWidth>
__device__ __forceinline__ void put_pair(unsigned char* tile, int line, int place, float first,
                                         float second) {
    E* at = &element<E, kWidth>(tile, line, place);
    if constexpr (sizeof(E) == 4) {
        at[0] = first;
        at[1] = second;
    } else {
        *reinterpret_cast<unsigned*>(at) = ptx::round_pair(E{}, first, second);
    }
}

// Adds the biases of a head, where there are any: content = rows + content_bias in their place, and
// position = rows + position_bias. All threads call this, between barriers.
template <class E, int kRows, int kWidth, int threads>
__device__ __forceinline__ void add_biases(const Attention& a, int head, unsigned char* content,
                                           unsigned char* position) {
    constexpr int chunks = kWidth / kPerChunk<E>;
    const auto bias = [&](const void* biases, int place) {
        if (biases == nullptr || place >= a.width) return 0.0f;
        return ptx::widen(static_cast<const E*>(biases)[std::int64_t{head} * a.width + place]);
    };
    for (int at = static_cast<int>(threadIdx.x); at < kRows * chunks; at += threads) {
        const int line = at / chunks, chunk = at % chunks;
        E* const own = reinterpret_cast<E*>(chunk_in<chunks>(content, line, chunk));
        E* const other = position == nullptr
                             ? nullptr
                             : reinterpret_cast<E*>(chunk_in<chunks>(position, line, chunk));
#pragma unroll
        for (int i = 0; i < kPerChunk<E>; ++i) {
            const int place = chunk * kPerChunk<E> + i;
            const float plain = ptx::widen(own[i]);
            own[i] = ptx::narrow<E>(plain + bias(a.content_bias, place));
            if (other != nullptr) other[i] = ptx::narrow<E>(plain + bias(a.position_bias, place));
        }
    }
}

// Writes 16 kHigh rows of sums, times the factor of a row, into lines `line` ... of a tile.
template <class E, int kLineWidth, int kHigh, int kWide, class Factor>
__device__ __forceinline__ void put_sums(unsigned char* tile, int line, int column,
                                         const float (&sums)[kHigh][kWide][4],
                                         const Factor& factor) {
#pragma unroll
    for (int h = 0; h < kHigh; ++h) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float scale = factor(h, half);
#pragma unroll
            for (int j = 0; j < kWide; ++j) {
                put_pair<E, kLineWidth>(
                    tile, line + 16 * h + row_of_lane(half), column + 8 * j + column_of_lane(),
                    sums[h][j][2 * half] * scale, sums[h][j][2 * half + 1] * scale);
            }
        }
    }
}

// Lines `line` ... of a tile (chunks from `chunk` on) to rows of a tensor, by the lanes of a warp.
template <class E, int kLineWidth, int kRows, int kChunks>
__device__ __forceinline__ void store_lines(unsigned char* tile, int line, int first_chunk, E* rows,
                                            std::int64_t stride, int row, int end, int width) {
    for (int at = lane(); at < kRows * kChunks; at += 32) {
        const int own = at / kChunks, chunk = first_chunk + at % kChunks;
        const int left = width - chunk * kPerChunk<E>;
        if (row + own >= end || left <= 0) continue;
        const E* from = reinterpret_cast<const E*>(
            chunk_in<kLineWidth / kPerChunk<E>>(tile, line + own, chunk));
        E* to = rows + (row + own) * stride + chunk * kPerChunk<E>;
        if (width % kPerChunk<E> == 0) {  // so that all rows begin at multiples of 16 bytes
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        } else {
#pragma unroll
            for (int i = 0; i < kPerChunk<E>; ++i) {
                if (i < left) to[i] = from[i];
            }
        }
    }
}

// --- Products: 16 kHigh rows of this warp, 8 kWide columns

template <int kHigh, int kWide>
__device__ __forceinline__ void clear(float (&sums)[kHigh][kWide][4]) {
#pragma unroll
    for (int h = 0; h < kHigh; ++h) {
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[h][j][i] = 0.0f;
        }
    }
}

// How many steps of a product are unrolled: the addresses of each take registers.
template <class E, int kWidth>
inline constexpr int kUnrolledSteps = kWidth * sizeof(E) > 256 ? 2 : 4;

// sums += lines `row` ... of A times lines `column` ... of B, along their width.
template <class E, int kWidth, int kUnrolled = kUnrolledSteps<E, kWidth>, int kHigh, int kWide>
__device__ __forceinline__ void add_products(float (&sums)[kHigh][kWide][4], unsigned char* a,
                                             int row, unsigned char* b, int column) {
    using Tile = Along<E, 16, kWidth>;  // however many lines it has
    const int own = ptx::fresh(lane());
#pragma unroll kUnrolled
    for (int k = 0; k < kWidth; k += 2 * kPerChunk<E>) {
        unsigned left[kHigh][4];
#pragma unroll
        for (int h = 0; h < kHigh; ++h) Tile::read_rows(a, row + 16 * h, k, left[h], own);
#pragma unroll
        for (int j = 0; j < kWide; j += 2) {
            unsigned right[2][2];
            Tile::read_columns(b, column + 8 * j, k, right[0], right[1], own);
#pragma unroll
            for (int h = 0; h < kHigh; ++h) {
                ptx::multiply<E>(sums[h][j], left[h], right[0]);
                ptx::multiply<E>(sums[h][j + 1], left[h], right[1]);
            }
        }
    }
}

// Sums as the left operand of the next product: columns 8 j ... of 16 rows, for one step.
template <class E, int kWide>
__device__ __forceinline__ void as_rows(const float (&sums)[kWide][4], int j,
                                        unsigned (&words)[4]) {
    if constexpr (sizeof(E) == 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] =
                ptx::round_pair(E{}, sums[j + i / 2][i % 2 * 2], sums[j + i / 2][i % 2 * 2 + 1]);
        }
    } else {  // places t and t + 4 are columns 2 t and 2 t + 1: see read_columns_of_sums
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = ptx::round_to_tf32(sums[j][i % 2 * 2 + i / 2]);
    }
}

// sums += weights times lines `line` ... of B (columns from `column` on), a line for each of the
// weights' columns.
template <class E, int kWidth, int kHigh, int kKeys, int kWide>
__device__ __forceinline__ void add_weighted(float (&sums)[kHigh][kWide][4],
                                             const float (&weights)[kHigh][kKeys][4],
                                             unsigned char* b, int line, int column) {
    constexpr int kStep = 2 * kPerChunk<E>;
    using Tile = Across<E, 16, kWidth>;
    const int own = ptx::fresh(lane());
#pragma unroll
    for (int k = 0; k < 8 * kKeys; k += kStep) {
        unsigned left[kHigh][4];
#pragma unroll
        for (int h = 0; h < kHigh; ++h) as_rows<E>(weights[h], k / 8, left[h]);
#pragma unroll
        for (int j = 0; j < kWide; j += 2) {
            unsigned right[2][2];
            Tile::read_columns_of_sums(b, column + 8 * j, line + k, right[0], right[1], own);
#pragma unroll
            for (int h = 0; h < kHigh; ++h) {
                ptx::multiply<E>(sums[h][j], left[h], right[0]);
                ptx::multiply<E>(sums[h][j + 1], left[h], right[1]);
            }
        }
    }
}

// sums += columns `row` ... of a tile of kLines scores, as rows, times the lines of B (its columns
// from `column` on); `totals` += the sums of the scores themselves, where `with_totals`.
template <class E, class Tile, int kLines, int kWidth, int kUnrolled, int kHigh, int kWide>
__device__ __forceinline__ void add_across(float (&sums)[kHigh][kWide][4],
                                           float (&totals)[kHigh][4], bool with_totals,
                                           unsigned char* scores, int row, unsigned char* b,
                                           int column) {
    const unsigned one = std::is_same_v<E, bfloat16>  ? 0x3F803F80
                         : std::is_same_v<E, float16> ? 0x3C003C00
                                                      : 0x3F800000;
    const unsigned ones[2] = {one, one};
    const int own = ptx::fresh(lane());
#pragma unroll kUnrolled
    for (int k = 0; k < kLines; k += 2 * kPerChunk<E>) {
        unsigned left[kHigh][4];
#pragma unroll
        for (int h = 0; h < kHigh; ++h) {
            Tile::read_rows_of_sums(scores, row + 16 * h, k, left[h], own);
            if (with_totals) ptx::multiply<E>(totals[h], left[h], ones);
        }
#pragma unroll
        for (int j = 0; j < kWide; j += 2) {
            unsigned right[2][2];
            Across<E, kLines, kWidth>::read_columns_of_sums(b, column + 8 * j, k, right[0],
                                                            right[1], own);
#pragma unroll
            for (int h = 0; h < kHigh; ++h) {
                ptx::multiply<E>(sums[h][j], left[h], right[0]);
                ptx::multiply<E>(sums[h][j + 1], left[h], right[1]);
            }
        }
    }
}

// --- Relative positions. In sums, row m is kShift - m columns to the right, of which 8 or more are
// whole groups: what is left is the same for both halves.

__device__ __forceinline__ int shift_of_lane() { return 7 - lane() / 4; }

// scores[m, n] = band[m, n + 15 - m]
template <int kWide>
__device__ __forceinline__ void skew(const float (&band)[kWide + 2][4], float (&scores)[kWide][4]) {
    const int shift = shift_of_lane(), at = column_of_lane();
    const int quad = lane() / 4 * 4;  // where the lanes are that have the first, the second element
    const int own = quad + (at + shift) % 8 / 2, next = quad + (at + shift + 1) % 8 / 2;
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float (&near)[4] = band[j + 1 - half];
            const float (&far)[4] = band[j + 2 - half];
            // Who is asked for an element knows from its place which of the two groups is meant.
            const float first = at < shift ? far[2 * half] : near[2 * half];
            const float second = at + 1 < shift ? far[2 * half + 1] : near[2 * half + 1];
            const float low = __shfl_sync(0xFFFFFFFF, first, shift % 2 == 0 ? own : next);
            const float high = __shfl_sync(0xFFFFFFFF, second, shift % 2 == 0 ? next : own);
            scores[j][2 * half] = shift % 2 == 0 ? low : high;
            scores[j][2 * half + 1] = shift % 2 == 0 ? high : low;
        }
    }
}

// The reverse; zeros where the band has no score.
template <int kWide>
__device__ __forceinline__ void unskew(const float (&scores)[kWide][4],
                                       float (&band)[kWide + 2][4]) {
    const int shift = shift_of_lane(), at = column_of_lane();
    const int quad = lane() / 4 * 4;
    const int own = quad + (at - shift + 8) % 8 / 2, next = quad + (at - shift + 9) % 8 / 2;
#pragma unroll
    for (int j = 0; j < kWide + 2; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const auto score = [&](int group, int i) {
                return group < 0 || group >= kWide ? 0.0f : scores[group][2 * half + i];
            };
            const int group = j - 1 + half;
            const float first = at + shift < 8 ? score(group, 0) : score(group - 1, 0);
            const float second = at + 1 + shift < 8 ? score(group, 1) : score(group - 1, 1);
            const float low = __shfl_sync(0xFFFFFFFF, first, shift % 2 == 0 ? own : next);
            const float high = __shfl_sync(0xFFFFFFFF, second, shift % 2 == 0 ? next : own);
            band[j][2 * half] = shift % 2 == 0 ? low : high;
            band[j][2 * half + 1] = shift % 2 == 0 ? high : low;
        }
    }
}

// Scores without their scale, of lines `row` ... of queries and `key` ... of keys. band: the rows
// of rel_pos, of which line `distance` is for the first key and the last of each 16 queries.
template <class E, int kWidth, bool kPositions, int kUnrolled = kUnrolledSteps<E, kWidth>,
          int kHigh, int kWide>
__device__ __forceinline__ void score(float (&scores)[kHigh][kWide][4], unsigned char* content,
                                      unsigned char* position, int row, unsigned char* keys,
                                      int key, unsigned char* band, int distance) {
    if constexpr (kPositions) {
#pragma unroll
        for (int h = 0; h < kHigh; ++h) {
            float products[1][kWide + 2][4];
            clear(products);
            add_products<E, kWidth, kUnrolled>(products, position, row + 16 * h, band,
                                               distance - 16 * h);
            skew(products[0], scores[h]);
        }
    } else {
        clear(scores);
    }
    add_products<E, kWidth, kUnrolled>(scores, content, row, keys, key);
}

}  // namespace dmao::attention
