// Where the tiles of a product over a live list come from: matrices of which one axis may be
// listed. Sources walk along k step by step; what a thread's copies have in common is worked out
// once per tile or step, not per copy.
#pragma once

#include "live_list.cuh"
#include "products.cuh"

namespace dmao {

// Row after row in memory: rows begin at multiples of 16 bytes, and zeros fill them up to that.
template <class E>
struct Matrix {
    const E* values;
    int stride;
};

// Positions [begin, end) of an axis.
struct Range {
    int begin, end;
};

// Chunks are read whole or not at all.
__device__ __forceinline__ Chunk whole_chunk(const void* source, bool inside) {
    return {source, inside ? kChunkBytes : 0};
}

// The chunk of k that a thread copies, of lines along k. `gathered`: a list says which elements its
// positions are; they are looked up a step ahead.
template <class E, bool gathered, int chunks>
class WalkAlong {
  public:
    __device__ __forceinline__ WalkAlong(const Live& live, const Range& k)
        : live_(live),
          next_(k.begin + static_cast<int>(threadIdx.x) % chunks * kPerChunk<E>),
          end_(k.end) {
        look_up();
    }

    // On to the next step.
    __device__ __forceinline__ void advance() {
        position = next_;
        element = next_element_;
        inside = position < end_ && (!gathered || element < live_.elements);
        next_ += chunks * kPerChunk<E>;
        look_up();
    }

    int position, element;
    bool inside;

  private:
    __device__ __forceinline__ void look_up() {
        next_element_ = gathered && next_ < end_ ? live_.element(next_) : next_;
    }
    Live live_;
    int next_, end_, next_element_;
};

// The tiles whose lines are rows of a matrix, along which k goes.
template <class E, class Tile, int threads>
class SourceAlong {
  public:
    // row_of(position) is the row of one of the positions of `lines`, negative for a row of zeros.
    template <class RowOf>
    __device__ __forceinline__ SourceAlong(const Matrix<E>& matrix, const Range& lines,
                                           const RowOf& row_of) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const int position =
                lines.begin + static_cast<int>(threadIdx.x) / Tile::kChunks + i * kApart;
            const int row = position < lines.end ? row_of(position) : -1;
            inside_[i] = row >= 0;
            rows_[i] = matrix.values + static_cast<std::int64_t>(row < 0 ? 0 : row) * matrix.stride;
        }
    }

    // The tile at a place in k.
    __device__ __forceinline__ auto at(int element, bool inside) const {
        return [this, element, inside](int copy, int, int) {
            return whole_chunk(rows_[copy] + element, inside && inside_[copy]);
        };
    }

  private:
    static constexpr int kCopies = Tile::template kCopies<threads>;
    static constexpr int kApart = threads / Tile::kChunks;
    const E* rows_[kCopies];
    bool inside_[kCopies];
};

// The tiles whose lines are rows of a matrix, across which k goes from row to row.
template <class E, class Tile, int threads, bool gathered>
class SourceAcross {
  public:
    // element_of(position) is the column of a position of `places`, negative: there is none.
    template <class ElementOf>
    __device__ __forceinline__ SourceAcross(const Matrix<E>& matrix, const Live& live,
                                            const Range& places, const Range& k,
                                            const ElementOf& element_of)
        : stride_(matrix.stride), end_(k.end), live_(live) {
        const int line = static_cast<int>(threadIdx.x) / Tile::kChunks;
        const int position =
            places.begin + static_cast<int>(threadIdx.x) % Tile::kChunks * kPerChunk<E>;
        const int element = position < places.end ? element_of(position) : -1;
        left_ = element < 0 ? 0 : k.end - k.begin - line;
        column_ = matrix.values + (element < 0 ? 0 : element);
        if (!gathered) column_ += static_cast<std::int64_t>(k.begin + line) * stride_;
        look_up();
    }

    // The tile of the next step.
    __device__ __forceinline__ auto next() {
        const E* column = column_;
        int rows[kCopies];
        bool inside[kCopies];
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            rows[i] = gathered ? rows_[i] : i * kApart;
            inside[i] = i * kApart < left_ && (!gathered || rows[i] < live_.elements);
        }
        if (!gathered) column_ += static_cast<std::int64_t>(Tile::kLines) * stride_;
        left_ -= Tile::kLines;
        look_up();
        return [=, stride = stride_](int copy, int, int) {
            return whole_chunk(column + static_cast<std::int64_t>(rows[copy]) * stride,
                               inside[copy]);
        };
    }

  private:
    __device__ __forceinline__ void look_up() {
        if constexpr (gathered) {
            // Within a thing, and a step begins a thing or goes on with one.
            const bool together = live_.keeps_together(Tile::kLines);
#pragma unroll
            for (int i = 0; i < kCopies; ++i) {
                if (i > 0 && together) {
                    rows_[i] = rows_[0] + i * kApart;
                } else {
                    rows_[i] = i * kApart < left_ ? live_.element(end_ - left_ + i * kApart) : 0;
                }
            }
        }
    }
    static constexpr int kCopies = Tile::template kCopies<threads>;
    static constexpr int kApart = threads / Tile::kChunks;
    const E* column_;
    int stride_, left_, end_;  // left_: how many k there are from this thread's line on
    Live live_;
    int rows_[kCopies];  // gathered: of the next step
};

}  // namespace dmao
