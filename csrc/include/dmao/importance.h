// importance: the sums of |w g| (or another metric) per component, over fixed chunks of the
// tensors.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"

namespace dmao {

enum class Metric : std::int32_t { taylor, gradient, magnitude, signed_taylor };

// A tensor seen as repeats x components x run is a matrix of `repeats` rows with components * run
// columns; a chunk is a rectangle of it that is contiguous in memory: some full rows, or a part of
// one row.
struct ImportanceChunk {
    const void* weight;  // first element of the tensor
    const void* grad;
    DType weight_dtype;
    DType grad_dtype;
    std::int64_t row_length;  // components * run
    std::int64_t run;         // columns of one component
    std::int64_t row_begin, row_end;
    std::int64_t column_begin, column_end;
    double* sums;  // out: one per component, from column_begin / run to (column_end - 1) / run
};

struct ImportanceProblem {
    const ImportanceChunk* chunks;
    std::int64_t count;
    std::int64_t workers;  // threads
    Metric metric;
};

using ImportanceKernel = void(const ImportanceProblem&, const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(importance, ImportanceKernel)
