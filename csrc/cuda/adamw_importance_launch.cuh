// adamw_importance_ on tensors whose memory is on the GPU.
#pragma once

#include "adamw_importance.cuh"
#include "element_types.h"
#include "scores_launch.cuh"

namespace dmao {

// A parameter with entries. Only scored: without moments, and maybe without gradient.
struct AdamWParameter {
    void* weight;
    const void* grad;
    void *average, *square;  // moments
    ElementType type;
};

class AdamWLaunch {
  public:
    AdamWLaunch(Metric metric, const ScoreAverages& averages)
        : scoring_(scoring_of(metric)), averages_(averages) {}

    // group: numbers in the order of GROUP_COLUMNS. `step` is on the GPU and to be counted there;
    // without it the step is `done`. Returns the place of the factors.
    std::int32_t add_step(const double* group, float* step, float done) {
        const auto place = static_cast<std::int32_t>(steps_.size());
        steps_.push_back(
            {group[0], group[1], group[2], group[3], group[4], group[5], step, done, place});
        return place;
    }

    // A parameter [repeats, components, run] that is scored, too.
    void add_scored(const AdamWParameter& parameter, std::int32_t factors, std::int64_t repeats,
                    std::int64_t components, std::int64_t run, std::int64_t first) {
        add(parameter, factors, cut_of(repeats, components, run),
            sums_.add(repeats, components, run, first));
    }

    void add_updated(const AdamWParameter& parameter, std::int32_t factors, std::int64_t size) {
        add(parameter, factors, cut_of(1, 1, size), -1);
    }

    // Floats.
    std::int64_t scratch() const { return factor_floats() + sums_.scratch(averages_.components); }

    // scratch: so many floats on the GPU. grad_factor: null, or what gradients are multiplied by.
    void run(const Gpu& gpu, const float* grad_factor, float* scratch) {
        StepFactors* factors = reinterpret_cast<StepFactors*>(scratch);
        float* sums = scratch + factor_floats();
        by_tables(steps_, [&](const Table<StepEntry>& table) {
            const auto blocks = static_cast<unsigned>(ceil_div(table.count, kStepThreads));
            launch<count_steps>(gpu, Grid{blocks}, kStepThreads, 0, table, grad_factor, factors);
        });
        for_each_element_type([&](auto element) {
            using E = decltype(element);
            walk_tables(
                gpu, entries_[place_of(type_of<E>)], kAdamWBlocks,
                [](const AdamWEntry& entry) { return entry.cut.pieces(); },
                [&](const Table<AdamWEntry>& table, Grid grid) {
                    launch<step_adamw<E>>(gpu, grid, kPieceThreads, 0, table,
                                          static_cast<const StepFactors*>(factors), scoring_, sums);
                });
        });
        sums_.average(gpu, averages_, sums);
    }

  private:
    std::int64_t factor_floats() const {
        return static_cast<std::int64_t>(steps_.size() * sizeof(StepFactors) / sizeof(float));
    }

    void add(const AdamWParameter& parameter, std::int32_t factors, const Cut& cut,
             std::int64_t sums) {
        entries_[place_of(parameter.type)].push_back({parameter.weight, parameter.grad,
                                                      parameter.average, parameter.square, cut,
                                                      sums, factors, 0});
    }

    Scoring scoring_;
    ScoreAverages averages_;
    Sums sums_;
    std::vector<StepEntry> steps_;
    std::vector<AdamWEntry> entries_[kElementTypes];
};

}  // namespace dmao
