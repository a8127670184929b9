#include "dmao/importance.h"

#include "fuzz.h"

namespace dmao::fuzzing {

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    const std::int64_t repeats = one_of({1, 2, 3, 7}), components = one_of({1, 2, 5});
    const std::int64_t run = one_of({1, 2, 3, 7, 15, 16, 17, 33, 64, 100});
    ImportanceChunk chunk{};
    chunk.weight_dtype = some_dtype();
    chunk.grad_dtype = some_dtype();
    chunk.run = run;
    chunk.row_length = chunk.column_end = components * run;
    chunk.row_end = repeats;
    if (coin()) {  // part of one row
        chunk.row_begin = repeats - 1;
        chunk.column_begin = below(chunk.row_length);
        chunk.column_end = chunk.column_begin + 1 + below(chunk.row_length - chunk.column_begin);
    }
    const auto weight = tensor(repeats * chunk.row_length, chunk.weight_dtype);
    const auto grad = tensor(repeats * chunk.row_length, chunk.grad_dtype);
    const std::int64_t scored = (chunk.column_end - 1) / run - chunk.column_begin / run + 1;
    const std::unique_ptr<double[]> sums(new double[scored]);
    chunk.weight = weight.get();
    chunk.grad = grad.get();
    chunk.sums = sums.get();
    for (int metric = 0; metric < 4; ++metric) {
        kernels::importance({&chunk, 1, workers, static_cast<Metric>(metric)}, parallel);
        record(sums.get(), scored);
    }
}

}  // namespace dmao::fuzzing
