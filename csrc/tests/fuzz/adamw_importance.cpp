#include "dmao/adamw_importance.h"

#include "fuzz.h"

namespace dmao::fuzzing {

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    const std::int64_t repeats = one_of({1, 2, 3, 7}), components = one_of({1, 2, 5});
    const std::int64_t run = one_of({1, 2, 3, 7, 15, 16, 17, 33, 64, 100});
    const std::int64_t row_length = components * run, count = repeats * row_length;
    const DType dtype = some_dtype();
    const auto weight = tensor(count, dtype), grad = tensor(count, dtype),
               exp_avg = tensor(count, dtype), exp_avg_sq = tensor(count, dtype);
    const AdamWFactors factors{1.0f, 0.1f, 0.99f, 0.01f, 1.5f, 1e-8f, 0.999f, 1e-3f};
    const std::unique_ptr<double[]> sums(new double[2 * components]);
    // Two chunks at once: the first rows and the last.
    AdamWChunk chunks[2]{};
    const bool scored = coin(), updated = !scored || coin();
    const std::int64_t cut = below(repeats + 1);
    for (int i = 0; i < 2; ++i) {
        AdamWChunk& chunk = chunks[i];
        chunk.part = {weight.get(), grad.get(), dtype, dtype, row_length, run, 0, 0, 0,
                      row_length,   nullptr};
        chunk.part.row_begin = i == 0 ? 0 : cut;
        chunk.part.row_end = i == 0 ? cut : repeats;
        chunk.part.sums = scored ? sums.get() + i * components : nullptr;
        chunk.weight = weight.get();
        chunk.exp_avg = updated ? exp_avg.get() : nullptr;
        chunk.exp_avg_sq = updated ? exp_avg_sq.get() : nullptr;
        chunk.factors = &factors;
    }
    const AdamWChunk* first = cut == 0 ? chunks + 1 : chunks;
    const std::int64_t some = cut == 0 || cut == repeats ? 1 : 2;
    for (int metric = 0; metric < 4; ++metric) {
        kernels::adamw_importance({first, some, workers, static_cast<Metric>(metric)}, parallel);
    }
    if (scored) record(first->part.sums, components);
    for (const auto* values : {&weight, &exp_avg, &exp_avg_sq}) record(values->get(), count, dtype);
}

}  // namespace dmao::fuzzing
