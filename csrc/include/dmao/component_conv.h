// component_conv: y = act(norm(depthwise(glu(x)))) over the live channels, and its gradients.
// Without gate, norm and activation it is the depthwise convolution alone.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"
#include "dmao/workspace.h"

namespace dmao {

// Neighbouring channels, of which `first` is the first.
struct ChannelRun {
    std::int64_t first, count;
};

// All tensors are contiguous and, but for `share`, of one dtype; pointers of absent ones are null.
struct ComponentConv {
    DType dtype;
    Activation activation;
    bool gated;  // x holds values and gates
    bool normed;
    double eps;
    std::int64_t rows;            // of x
    const Utterance* utterances;  // in order, disjoint; rows of none of them are zero in y
    std::int64_t utterance_count;
    std::int64_t channels;         // live
    std::int64_t stored_channels;  // that the weights have
    const ChannelRun* runs;        // the live channels, in order
    std::int64_t run_count;
    std::int64_t taps;   // odd
    const float* share;  // [channels] of each in mean and variance; sums to 1
    const void* x;       // [rows, stored_channels], twice as wide where gated
    const void* weight;  // [stored_channels, taps]
    const void* bias;    // [stored_channels], like those that follow
    const void* norm_weight;
    const void* norm_bias;
};

struct ComponentConvForward {
    ComponentConv conv;
    void* y;  // [rows, stored_channels]
    // For the backward pass; null: not kept.
    void* normed;   // [rows, channels] the convolution's output, normed
    float* scales;  // [rows] 1 / standard deviation
};

struct ComponentConvBackward {
    ComponentConv conv;
    const void* grad_y;   // [rows, stored_channels]
    const void* normed;   // null where there is neither norm nor activation
    const float* scales;  // null without norm
    void* grad_x;
    // Only the entries of live channels are written. Null: not wanted.
    void* grad_weight;
    void* grad_bias;
    void* grad_norm_weight;
    void* grad_norm_bias;
};

using ComponentConvForwardScratch = std::int64_t(const ComponentConvForward&, std::int64_t workers);
using ComponentConvForwardKernel = void(const ComponentConvForward&, const Workspace&,
                                        const ParallelFor&);
using ComponentConvBackwardScratch = std::int64_t(const ComponentConvBackward&,
                                                  std::int64_t workers);
using ComponentConvBackwardKernel = void(const ComponentConvBackward&, const Workspace&,
                                         const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(component_conv_forward_scratch, ComponentConvForwardScratch)
DMAO_DECLARE_CPU_KERNEL(component_conv_forward, ComponentConvForwardKernel)
DMAO_DECLARE_CPU_KERNEL(component_conv_backward_scratch, ComponentConvBackwardScratch)
DMAO_DECLARE_CPU_KERNEL(component_conv_backward, ComponentConvBackwardKernel)
