// The residual step x + scale * dropout(y), alone and with the LayerNorm of its sum; gradients.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"

namespace dmao {

// Tensors are contiguous, [rows, width].
struct DropoutAdd {
    std::int64_t rows, width;  // each at least 1
    DType x_dtype;             // of x, the sum and the norm
    DType y_dtype;             // that, or bfloat16
    double p;                  // dropout probability, in [0, 1)
    double scale;
    std::uint64_t seed;
};

struct DropoutAddForward {
    DropoutAdd step;
    const void* x;  // null: zero
    const void* y;
    void* sum;
};

struct DropoutAddNormForward {
    DropoutAdd step;
    const void* x;
    const void* y;
    const float* weight;  // [width]
    const float* bias;    // [width]
    double eps;
    void* sum;
    void* norm;
    float* statistics;  // [rows, 2]: mean and reciprocal standard deviation of the sum
};

struct DropoutAddNormBackward {
    DropoutAdd step;
    const void* grad_sum;  // null: zero
    const void* grad_norm;
    const void* sum;
    const float* weight;
    const float* statistics;
    void* grad_x;
    void* grad_y;  // null: not wanted
    float* grad_weight;
    float* grad_bias;
};

// Floats of scratch that the kernels want, aligned to 64 bytes.
using DropoutAddScratch = std::int64_t(const DropoutAdd&);
using DropoutAddKernel = void(const DropoutAddForward&, float* scratch, const ParallelFor&);
using DropoutAddNormForwardKernel = void(const DropoutAddNormForward&, float* scratch,
                                         const ParallelFor&);
using DropoutAddNormBackwardKernel = void(const DropoutAddNormBackward&, float* scratch,
                                          const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(dropout_add_scratch, DropoutAddScratch)
DMAO_DECLARE_CPU_KERNEL(dropout_add_norm_backward_scratch, DropoutAddScratch)
DMAO_DECLARE_CPU_KERNEL(dropout_add, DropoutAddKernel)
DMAO_DECLARE_CPU_KERNEL(dropout_add_norm_forward, DropoutAddNormForwardKernel)
DMAO_DECLARE_CPU_KERNEL(dropout_add_norm_backward, DropoutAddNormBackwardKernel)
