// From segments to the averages of scores: where the sums of every scored tensor stand, and how
// they get into the averages.
#pragma once

#include <algorithm>

#include "dmao/importance.h"
#include "scores.cuh"
#include "tables_launch.cuh"

namespace dmao {

inline Scoring scoring_of(Metric metric) {
    return {metric != Metric::gradient, metric != Metric::magnitude,
            metric != Metric::signed_taylor};
}

// The moving averages, whose memory is on the GPU.
struct ScoreAverages {
    float* ema;
    const float* inverse_count;
    std::int64_t components;
    double beta;
};

class Sums {
  public:
    // Where the sums of a tensor [repeats, components, run] with entries begin, whose components
    // are those of the averages from `first` on.
    std::int64_t add(std::int64_t repeats, std::int64_t components, std::int64_t run,
                     std::int64_t first) {
        const Cut cut = cut_of(repeats, components, run);
        const SumsOfComponent own = sums_of_component(cut, repeats, components, run);
        const std::int64_t begin = count_;
        in_32_bits(own.rows * own.columns);
        ranges_.push_back({begin, in_32_bits(own.rows), in_32_bits(own.columns),
                           in_32_bits(own.stride), in_32_bits(first),
                           in_32_bits(first + components), 0});
        count_ += cut.sums();
        in_32_bits(count_);  // for Piece::sums
        return begin;
    }

    // Floats of memory on the GPU that sums and averages need.
    std::int64_t scratch(std::int64_t components) const {
        return count_ + (ranges_.size() > Table<ScoredRange>::kCapacity ? 2 * components : 0);
    }

    void average(const Gpu& gpu, const ScoreAverages& scores, float* scratch) {
        std::stable_sort(ranges_.begin(), ranges_.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
        Averages all{scores.ema,
                     scores.inverse_count,
                     scratch,
                     scratch + count_,
                     in_32_bits(scores.components),
                     static_cast<float>(scores.beta),
                     static_cast<float>(1.0 - scores.beta),
                     true,
                     false};
        constexpr int kWarps = kAverageThreads / 32;
        const std::int64_t blocks = std::min(ceil_div(scores.components, kWarps),
                                             std::int64_t{gpu.processors} * kAverageBlocks);
        std::int64_t done = 0;
        by_tables(ranges_, [&](Table<ScoredRange>& table) {
            std::int32_t reach = 0;
            for (int i = 0; i < table.count; ++i) {
                reach = std::max(reach, table.entries[i].end);
                table.entries[i].reach = reach;
            }
            done += table.count;
            all.ends = done == static_cast<std::int64_t>(ranges_.size());
            launch<average_scores>(gpu, Grid{static_cast<unsigned>(blocks)}, kAverageThreads, 0,
                                   table, all);
            all.begins = false;
        });
    }

  private:
    std::vector<ScoredRange> ranges_;
    std::int64_t count_ = 0;
};

}  // namespace dmao
