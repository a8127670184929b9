// conv3x3: convolution of channels-last images with 3 x 3 filters, and the gradient of its filters.
// (The gradient of the images is a conv3x3 again.)
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"
#include "dmao/workspace.h"

namespace dmao {

// All tensors are contiguous and of one dtype.
struct Conv3x3 {
    DType dtype;
    std::int64_t images, height, width, in, out;
    const void* x;  // [images, height, width, in]
};

struct Conv3x3Forward {
    Conv3x3 conv;
    const void* taps;  // [3, 3, in, out]
    const void* bias;  // [out], or null
    void* y;           // [images, height, width, out]
};

struct Conv3x3Backward {
    Conv3x3 conv;
    const void* grad_y;  // [images, height, width, out]
    void* grad_taps;     // [3, 3, in, out]
    void* grad_bias;     // [out]
};

using Conv3x3ForwardScratch = std::int64_t(const Conv3x3Forward&, std::int64_t workers);
using Conv3x3ForwardKernel = void(const Conv3x3Forward&, const Workspace&, const ParallelFor&);
using Conv3x3BackwardScratch = std::int64_t(const Conv3x3Backward&, std::int64_t workers);
using Conv3x3BackwardKernel = void(const Conv3x3Backward&, const Workspace&, const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(conv3x3_forward_scratch, Conv3x3ForwardScratch)
DMAO_DECLARE_CPU_KERNEL(conv3x3_forward, Conv3x3ForwardKernel)
DMAO_DECLARE_CPU_KERNEL(conv3x3_backward_scratch, Conv3x3BackwardScratch)
DMAO_DECLARE_CPU_KERNEL(conv3x3_backward, Conv3x3BackwardKernel)
