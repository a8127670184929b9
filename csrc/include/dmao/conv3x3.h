// conv3x3: convolution of channels-last images with 3 x 3 filters, with ReLU and max pooling behind
// it where that is wanted; the gradients of the images and of the filters.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"
#include "dmao/workspace.h"

namespace dmao {

// All tensors are contiguous, and of one dtype but for `valid` and `choice`.
//
// x is [images, height, width, in]; y is [images, rows, columns, out] with rows = height / time and
// columns = width / frequency, which are height and width where there is no pooling.
struct Conv3x3 {
    DType dtype;
    std::int64_t images, height, width, in, out;
    bool pooled;                   // or plain
    std::int64_t time, frequency;  // of the pooling; 1 and 1 without. At most kConv3x3Window pixels
    const bool* valid;             // [images, rows], or null: the other rows of y are zero
};

// choice [images, rows, columns, out] says which pixel of its window a pooled value is: that of row
// i and column j has the number i * frequency + j. A value that ReLU made zero is none of them.
constexpr std::int64_t kConv3x3Window = 255;

struct Conv3x3Forward {
    Conv3x3 conv;
    const void* x;
    const void* taps;  // [3, 3, in, out]
    const void* bias;  // [out], or null
    void* y;
    std::uint8_t* choice;  // null without pooling
};

struct Conv3x3Images {
    Conv3x3 conv;
    const void* grad_y;
    const std::uint8_t* choice;
    const void* taps;  // [3, 3, out, in]: those of the forward pass upside down and back to front
    void* grad_x;
};

struct Conv3x3Filters {
    Conv3x3 conv;
    const void* x;
    const void* grad_y;
    const std::uint8_t* choice;
    void* grad_taps;  // [3, 3, in, out]
    void* grad_bias;  // [out]
};

using Conv3x3ForwardScratch = std::int64_t(const Conv3x3Forward&, std::int64_t workers);
using Conv3x3ForwardKernel = void(const Conv3x3Forward&, const Workspace&, const ParallelFor&);
using Conv3x3ImagesScratch = std::int64_t(const Conv3x3Images&, std::int64_t workers);
using Conv3x3ImagesKernel = void(const Conv3x3Images&, const Workspace&, const ParallelFor&);
using Conv3x3FiltersScratch = std::int64_t(const Conv3x3Filters&, std::int64_t workers);
using Conv3x3FiltersKernel = void(const Conv3x3Filters&, const Workspace&, const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(conv3x3_forward_scratch, Conv3x3ForwardScratch)
DMAO_DECLARE_CPU_KERNEL(conv3x3_forward, Conv3x3ForwardKernel)
DMAO_DECLARE_CPU_KERNEL(conv3x3_images_scratch, Conv3x3ImagesScratch)
DMAO_DECLARE_CPU_KERNEL(conv3x3_images, Conv3x3ImagesKernel)
DMAO_DECLARE_CPU_KERNEL(conv3x3_filters_scratch, Conv3x3FiltersScratch)
DMAO_DECLARE_CPU_KERNEL(conv3x3_filters, Conv3x3FiltersKernel)
