// importance_ on tensors whose memory is on the GPU.
#pragma once

#include "element_types.h"
#include "importance.cuh"
#include "scores_launch.cuh"

namespace dmao {

// [repeats, components, run] with entries, of which component 0 is `first` of the averages.
struct ImportanceTensor {
    const void *weight, *grad;
    ElementType weight_type, grad_type;
    std::int64_t repeats, components, run, first;
};

class ImportanceLaunch {
  public:
    ImportanceLaunch(Metric metric, const ScoreAverages& averages)
        : scoring_(scoring_of(metric)), averages_(averages) {}

    void add(const ImportanceTensor& tensor) {
        const auto& [weight, grad, weight_type, grad_type, repeats, components, run, first] =
            tensor;
        const std::int64_t sums = sums_.add(repeats, components, run, first);
        entries_[place_of(weight_type)][place_of(grad_type)].push_back(
            {weight, grad, cut_of(repeats, components, run), sums, 0});
    }

    std::int64_t scratch() const { return sums_.scratch(averages_.components); }

    // scratch: so many floats on the GPU.
    void run(const Gpu& gpu, float* scratch) {
        for_each_element_type([&](auto weight) {
            for_each_element_type([&](auto grad) {
                using W = decltype(weight);
                using G = decltype(grad);
                walk_tables(
                    gpu, entries_[place_of(type_of<W>)][place_of(type_of<G>)], kImportanceBlocks,
                    [](const ImportanceEntry& entry) { return entry.cut.pieces(); },
                    [&](const Table<ImportanceEntry>& table, Grid grid) {
                        launch<sum_importance<W, G>>(gpu, grid, kPieceThreads, 0, table, scoring_,
                                                     scratch);
                    });
            });
        });
        sums_.average(gpu, averages_, scratch);
    }

  private:
    Scoring scoring_;
    ScoreAverages averages_;
    Sums sums_;
    std::vector<ImportanceEntry> entries_[kElementTypes][kElementTypes];
};

}  // namespace dmao
