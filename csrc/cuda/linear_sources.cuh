// Where the tiles of a product over a live list come from: matrices of which one axis may be
// listed. What a thread's copies have in common is worked out once per tile or step, not per copy.
#pragma once

#include "live_list.cuh"
#include "products.cuh"

namespace dmao {

// Row after row in memory; first element and stride are multiples of 16 bytes.
template <class E>
struct Matrix {
    const E* values;
    int stride;
};

// Positions [begin, end) of an axis; by element where a list says which elements they are.
struct Range {
    int begin, end;
    bool by_element;
};

// How many of the elements from `element` on, a chunk of them, may be read.
template <class E>
__device__ __forceinline__ int chunk_bytes(const Live& live, const Range& range, int position,
                                           int element) {
    int left = range.end - position;
    if (range.by_element) {
        const int there = live.elements - element;
        left = there < left ? there : left;
    }
    constexpr int most = kPerChunk<E>;
    return (left < 0 ? 0 : left > most ? most : left) * static_cast<int>(sizeof(E));
}

__device__ __forceinline__ int element_at(const Live& live, const Range& range, int position) {
    return range.by_element && position < range.end ? live.element(position) : position;
}

// The tiles whose lines are rows of a matrix, along which k goes.
template <class E, class Tile, int threads>
class SourceAlong {
  public:
    // row_of(position) is the row of one of the positions of `lines`, negative for a row of zeros.
    template <class RowOf>
    __device__ __forceinline__ SourceAlong(const Matrix<E>& matrix, const Live& live,
                                           const Range& lines, const Range& k, const RowOf& row_of)
        : live_(live), k_(k) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const int position =
                lines.begin + static_cast<int>(threadIdx.x) / Tile::kChunks + i * kApart;
            const int row = position < lines.end ? row_of(position) : -1;
            rows_[i] = matrix.values + static_cast<std::int64_t>(row < 0 ? 0 : row) * matrix.stride;
            inside_ |= static_cast<unsigned>(row >= 0) << i;
        }
    }

    __device__ __forceinline__ auto operator()(int step) const {
        constexpr int depth = Tile::kChunks * kPerChunk<E>;
        const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks;
        const int position = k_.begin + step * depth + chunk * kPerChunk<E>;
        const int element = element_at(live_, k_, position);
        const int bytes = chunk_bytes<E>(live_, k_, position, element);
        return [this, element, bytes](int copy, int, int) -> Chunk {
            return {rows_[copy] + element, (inside_ >> copy & 1) != 0 ? bytes : 0};
        };
    }

  private:
    static constexpr int kCopies = Tile::template kCopies<threads>;
    static constexpr int kApart = threads / Tile::kChunks;
    const E* rows_[kCopies];
    unsigned inside_ = 0;
    Live live_;
    Range k_;
};

// The tiles whose lines are rows of a matrix, across which k goes from row to row.
template <class E, class Tile, int threads>
class SourceAcross {
  public:
    __device__ __forceinline__ SourceAcross(const Matrix<E>& matrix, const Live& live,
                                            const Range& places, const Range& k)
        : stride_(matrix.stride), live_(live), k_(k) {
        const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks;
        const int position = places.begin + chunk * kPerChunk<E>;
        const int element = element_at(live, places, position);
        bytes_ = chunk_bytes<E>(live, places, position, element);
        column_ = matrix.values + element;
    }

    __device__ __forceinline__ auto operator()(int step) const {
        return [this, step](int, int line, int) -> Chunk {
            const int position = k_.begin + step * Tile::kLines + line;
            const int row = element_at(live_, k_, position);
            const bool inside = position < k_.end && (!k_.by_element || row < live_.elements);
            return {column_ + static_cast<std::int64_t>(inside ? row : 0) * stride_,
                    inside ? bytes_ : 0};
        };
    }

  private:
    const E* column_;
    int stride_, bytes_;
    Live live_;
    Range k_;
};

}  // namespace dmao
