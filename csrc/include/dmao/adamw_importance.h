// adamw_importance: AdamW on chunks of the parameters and, in the same walk, the component sums of
// importance.
#pragma once

#include "dmao/importance.h"

namespace dmao {

// g' = grad_factor g;  m <- m + average (g' - m);  v <- decay v + (1 - decay) g'^2;
// w <- keep w - rate m / (sqrt(v) root + eps)
struct AdamWFactors {
    float grad_factor;    // negative to maximise
    float average;        // 1 - beta1
    float decay, square;  // beta2, 1 - beta2
    float root;           // 1 / sqrt(1 - beta2^t)
    float eps;
    float keep;  // 1 - lr weight_decay
    float rate;  // lr / (1 - beta1^t)
};

// weight and grad of `part` have the same dtype, which is that of the moments. Without sums it is
// not scored; without moments it is only scored, and `weight` and `factors` are not looked at.
struct AdamWChunk {
    ImportanceChunk part;
    void* weight;  // part.weight, to be written
    void* exp_avg;
    void* exp_avg_sq;
    const AdamWFactors* factors;
};

struct AdamWProblem {
    const AdamWChunk* chunks;
    std::int64_t count;
    std::int64_t workers;  // threads
    Metric metric;
};

using AdamWKernel = void(const AdamWProblem&, const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(adamw_importance, AdamWKernel)
