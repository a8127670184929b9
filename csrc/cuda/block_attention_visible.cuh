// block_attention: which rows a block of threads has, which tiles it visits, what is visible there
// and what dropout keeps.
//
// A block owns a tile of queries (or keys) of one utterance and head and goes through tiles of the
// other side. Blocks are numbered over all rows: utterance b, whose first row is f, has those from
// f / tile + b on, which is enough whatever its length, and none of another utterance. So packed
// and padded rows are the same, the grid is known without looking at lengths, and blocks of padding
// write zeros.
#pragma once

#include "block_attention_problem.h"
#include "philox.cuh"

namespace dmao::attention {

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ int clamp(int x, int low, int high) {
    return smaller(larger(x, low), high);
}

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
// The same for all lanes, and known to be to the compiler.
__device__ __forceinline__ int warp() {
    return __shfl_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x) / 32, 0);
}

// --- Utterances

struct Span {
    int utterance, first, length;
    int owned;  // rows up to the next utterance
};

__device__ __forceinline__ int first_row(const Attention& a, int utterance) {
    return clamp(a.spans[2 * utterance], 0, a.rows);
}

// No row of a dead head is looked at.
__device__ __forceinline__ Span span_of(const Attention& a, int utterance, int head) {
    Span s{utterance, first_row(a, utterance), 0, 0};
    s.length = clamp(a.spans[2 * utterance + 1], 0, smaller(a.frames, a.rows - s.first));
    const int next = utterance + 1 < a.utterances ? first_row(a, utterance + 1) : a.rows;
    s.owned = larger(next - s.first, s.length);
    if (a.head_mask != nullptr && !a.head_mask[head]) s.length = 0;
    return s;
}

// The utterance of a block; `tile` becomes the index of its tile in it.
__device__ __forceinline__ Span find_span(const Attention& a, int block, int rows, int head,
                                          int& tile) {
    int low = 0, high = a.utterances;  // the last one that has begun is in [low, high)
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (first_row(a, middle) / rows + middle <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    tile = block - (first_row(a, low) / rows + low);
    return span_of(a, low, head);
}

// --- What is visible, by position

struct Range {
    int begin, end;
};

// Of the keys that a query sees by window, chunk and length; both ends ascend with it.
__device__ __forceinline__ Range keys_of(const Attention& a, int query, int length) {
    if (query >= length) return {0, 0};
    const int own = query / a.chunk;
    return {larger(larger(query - a.left, (own - a.left_chunks) * a.chunk), 0),
            smaller(smaller(query + a.right, own * a.chunk + a.chunk - 1) + 1, length)};
}
__device__ __forceinline__ Range queries_of(const Attention& a, int key, int length) {
    if (key >= length) return {0, 0};
    const int own = key / a.chunk;
    return {larger(larger(key - a.right, own * a.chunk), 0),
            smaller(smaller(key + a.left + 1, (own + a.left_chunks + 1) * a.chunk), length)};
}

// What all rows of a tile see, from the first one's begin to the last one's end.
template <class Of>
__device__ __forceinline__ Range all_of(const Attention& a, int first, int rows, int length,
                                        const Of& of) {
    if (first >= length) return {0, 0};
    const Range last = of(a, smaller(first + rows, length) - 1, length);
    const int begin = of(a, first, length).begin;
    return {begin, larger(last.end, begin)};
}

// --- Tiles of the other side that a tile visits, ascending; blocks of a mask are made of squares
// of 16 x 16, which live or not. All lanes of a warp call all of this; lane i keeps the list of the
// i-th 16 rows of the own side.

template <int kRows, int kTile>
class Walk {
  public:
    // own: first position of the own tile; range: positions of the other side.
    __device__ __forceinline__ Walk(const Attention& a, const AttentionLines& lines, int own,
                                    Range range)
        : ids_(lines.ids),
          block_(a.block),
          end_(range.begin < range.end ? (range.end + kTile - 1) / kTile : 0) {
        static_assert(kRows % 16 == 0 && kRows <= 32 * 16 && kTile % 16 == 0);
        if (lines.offsets != nullptr) {
            const int line = (own + 16 * lane()) / a.block;
            if (lane() < kRows / 16 && line < a.mask_lines) {
                at_ = clamp(lines.offsets[line], 0, a.mask_count);
                last_ = clamp(lines.offsets[line + 1], at_, a.mask_count);
            }
            int high = last_;  // the first of the list that ends behind the begin
            while (at_ < high) {
                const int middle = (at_ + high) / 2;
                if ((ids_[middle] + 1) * block_ <= range.begin) {
                    at_ = middle + 1;
                } else {
                    high = middle;
                }
            }
        } else {
            ids_ = nullptr;
        }
        seek(range.begin / kTile);
    }

    __device__ __forceinline__ bool done() const { return tile_ >= end_; }
    __device__ __forceinline__ int tile() const { return tile_; }

    // The next live tile from `tile` on.
    __device__ __forceinline__ void seek(int tile) {
        tile_ = tile;
        if (ids_ == nullptr) return;
        int found = end_;
        while (at_ < last_ && (ids_[at_] + 1) * block_ <= tile * kTile) ++at_;
        if (at_ < last_) found = larger(tile, ids_[at_] * block_ / kTile);
#pragma unroll
        for (int bit = 16; bit > 0; bit /= 2) {
            found = smaller(found, __shfl_xor_sync(0xFFFFFFFF, found, bit));
        }
        tile_ = found;
        live_ = 0;
        const int begin = found * kTile;
        for (int i = at_; i < last_ && ids_[i] * block_ < begin + kTile; ++i) {
            const int from = larger(ids_[i] * block_ - begin, 0) / 16;
            const int to = smaller((ids_[i] + 1) * block_ - begin, kTile) / 16;
            live_ |= ((1u << (to - from)) - 1) << from;
        }
    }

    // Bit i: whether the i-th 16 positions of the tile live for these 16 rows of the own side.
    __device__ __forceinline__ unsigned live(int rows) const {
        return ids_ == nullptr ? ~0u : __shfl_sync(0xFFFFFFFF, live_, rows);
    }
    // The same from the other side: bit i, the i-th 16 of the own rows.
    __device__ __forceinline__ unsigned live_across(int positions) const {
        if (ids_ == nullptr) return ~0u;
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i) bits |= (live(i) >> positions & 1) << i;
        return bits;
    }

  private:
    const std::int32_t* ids_;
    int block_, end_, tile_ = 0, at_ = 0, last_ = 0;
    unsigned live_ = 0;
};

// --- The scores that a lane has: two rows of 16 (`half` 0 and 1), in every 8 columns two
// neighbours

__device__ __forceinline__ int row_of_lane(int half) { return lane() / 4 + 8 * half; }
__device__ __forceinline__ int column_of_lane() { return lane() % 4 * 2; }

// Which keys 16 queries see. Ranges of single queries are computed where a tile is not seen as a
// whole: they would take registers from all others.
struct Sight {
    int query, length;
    int begin, end;  // keys that all of them see, by position

    Sight() = default;
    __device__ __forceinline__ Sight(const Attention& a, int first, int rows)
        : query(first),
          length(rows),
          begin(keys_of(a, first + 15, rows).begin),
          end(first + 15 < rows ? keys_of(a, first, rows).end : 0) {}

    // hide(sum) for what is not visible among sums of keys from `key` on.
    template <int kWide, class Hide>
    __device__ __forceinline__ void apply(const Attention& a, float (&sums)[kWide][4], int key,
                                          unsigned live, const Hide& hide) const {
        constexpr unsigned all = (1u << kWide / 2) - 1;
        if (begin <= key && key + 8 * kWide <= end && (live & all) == all) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Range range = keys_of(a, query + row_of_lane(half), length);
            const int from = range.begin - key - column_of_lane();
            const int to = range.end - key - column_of_lane();
#pragma unroll
            for (int j = 0; j < kWide; ++j) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int at = 8 * j + i;
                    if (at < from || at >= to || (live >> j / 2 & 1) == 0) {
                        hide(sums[j][2 * half + i]);
                    }
                }
            }
        }
    }
};

// What dropout keeps of 16 kHigh queries and the 128 keys around those that were asked for last.
template <int kHigh>
class Kept {
  public:
    __device__ __forceinline__ void draw(const Attention& a, const Span& span, int head, int query,
                                         int key) {
        if (query == query_ && key / 128 == group_) return;
        query_ = query;
        group_ = key / 128;
        const Philox philox(a.seed);
#pragma unroll
        for (int half = 0; half < 2 * kHigh; ++half) {
            bits_[half] = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = i / 2 * 8 + column_of_lane() + i % 2;
                bits_[half] |= philox.keep_bits(static_cast<unsigned>(query + row_of_lane(half)),
                                                static_cast<unsigned>(group_ * 16 + column),
                                                a.threshold, static_cast<unsigned>(span.utterance),
                                                static_cast<unsigned>(head))
                               << 8 * i;
            }
        }
    }
    // Of element i of the j-th 8 keys, from the multiple of 16 `key` on, in the h-th 16 queries.
    __device__ __forceinline__ bool kept(int h, int key, int j, int i) const {
        return bits_[2 * h + i / 2] >> (j % 2 * 16 + i % 2 * 8 + (key / 16 + j / 2) % 8) & 1;
    }

  private:
    int query_ = -1, group_ = -1;
    unsigned bits_[2 * kHigh];
};

}  // namespace dmao::attention
