// What scoring operations on the CPU share: the cut of tensors into chunks, and the way of the
// chunks' sums into the moving averages.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "segments.h"

namespace dmao {

// Elements of one chunk. Fixed, so that sums do not depend on the number of threads; large against
// the cost of handing out a chunk, small enough to balance two threads on a small model.
inline constexpr std::int64_t kChunk = 1 << 16;

// The rows of `segments`, each checked; and the tables that they go with.
inline std::vector<Segment> read_segments(const char* op, const Tensor& ema, const Tensor& segments,
                                          const Tensor& inverse_count,
                                          const std::vector<Tensor>& weights) {
    check_tensor(op, "ema", ema, ScalarType::Float);
    check_tensor(op, "inverse_count", inverse_count, ScalarType::Float);
    check(inverse_count.numel() == ema.numel(), op, ": inverse_count must have ", ema.numel(),
          " elements, got ", inverse_count.numel());
    return read_segments(op, segments, weights, ema.numel());
}

// Calls visit(chunk) for every chunk of a tensor that is not empty; `chunk` is `tensor` with its
// place.
template <class Visit>
void cut(std::int64_t repeats, std::int64_t row_length, std::int64_t run,
         const ImportanceChunk& tensor, const Visit& visit) {
    const std::int64_t rows = row_length < kChunk ? kChunk / row_length : 1;
    const std::int64_t columns = std::min(row_length, kChunk);
    for (std::int64_t row = 0; row < repeats; row += rows) {
        for (std::int64_t column = 0; column < row_length; column += columns) {
            ImportanceChunk chunk = tensor;
            chunk.row_length = row_length;
            chunk.run = run;
            chunk.row_begin = row;
            chunk.row_end = std::min(row + rows, repeats);
            chunk.column_begin = column;
            chunk.column_end = std::min(column + columns, row_length);
            visit(chunk);
        }
    }
}

// The sums of all chunks, one per chunk and component that it touches.
class PartialSums {
  public:
    // Makes room for the sums of the next chunk, whose tensor begins with component `first`.
    void add(const ImportanceChunk& chunk, std::int64_t first) {
        const std::int64_t skipped = chunk.column_begin / chunk.run;
        const std::int64_t count = (chunk.column_end - 1) / chunk.run - skipped + 1;
        places_.push_back({total_, count, first + skipped});
        total_ += count;
    }

    void allocate() { values_ = std::make_unique_for_overwrite<double[]>(total_); }

    double* of_chunk(std::size_t i) const { return values_.get() + places_[i].offset; }

    // ema <- beta ema + (1 - beta) sum inverse, summed in the order of the chunks. A component
    // whose mean is not finite keeps its average, and so does one that no chunk touches.
    void average(const Tensor& ema, const Tensor& inverse_count, double beta) const {
        const std::int64_t components = ema.numel();
        std::vector<double> sums(components, 0.0);
        std::vector<bool> touched(components, false);
        for (const Place& place : places_) {
            for (std::int64_t i = 0; i < place.count; ++i) {
                sums[place.component + i] += values_[place.offset + i];
                touched[place.component + i] = true;
            }
        }
        float* average = ema.mutable_data_ptr<float>();
        const float* inverse = inverse_count.const_data_ptr<float>();
        for (std::int64_t i = 0; i < components; ++i) {
            const double mean = sums[i] * inverse[i];
            if (touched[i] && std::isfinite(static_cast<float>(mean))) {
                average[i] = static_cast<float>(beta * average[i] + (1.0 - beta) * mean);
            }
        }
    }

  private:
    struct Place {
        std::int64_t offset, count, component;
    };
    std::vector<Place> places_;
    std::int64_t total_ = 0;
    std::unique_ptr<double[]> values_;
};

}  // namespace dmao
