// component_ffn: y = dropout(act(x W1^T + b1)) W2^T + b2 over the live hidden units, and its
// gradients.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"
#include "dmao/workspace.h"

namespace dmao {

// All tensors are contiguous and of one dtype; pointers of absent biases are null.
struct ComponentFfn {
    DType dtype;
    Activation activation;
    std::int64_t tokens, in_width, out_width;
    std::int64_t hidden;         // live units
    std::int64_t stored_hidden;  // units that the weights have
    const std::int32_t* units;   // [hidden] which of the stored units live, ascending
    double p;                    // dropout probability, in [0, 1)
    std::uint64_t seed;
    const void* x;   // [tokens, in_width]
    const void* w1;  // [stored_hidden, in_width]
    const void* b1;  // [stored_hidden]
    const void* w2;  // [out_width, stored_hidden]
};

struct ComponentFfnForward {
    ComponentFfn ffn;
    const void* b2;        // [out_width]
    void* y;               // [tokens, out_width]
    void* pre_activation;  // [tokens, hidden], for the backward pass; null: not kept
};

struct ComponentFfnBackward {
    ComponentFfn ffn;
    const void* grad_y;          // [tokens, out_width]
    const void* pre_activation;  // [tokens, hidden]
    // Null: not wanted. Only the entries of live units are written.
    void* grad_x;
    void* grad_w1;
    void* grad_b1;
    void* grad_w2;
    void* grad_b2;
};

using ComponentFfnForwardScratch = std::int64_t(const ComponentFfnForward&, std::int64_t workers);
using ComponentFfnForwardKernel = void(const ComponentFfnForward&, const Workspace&,
                                       const ParallelFor&);
using ComponentFfnBackwardScratch = std::int64_t(const ComponentFfnBackward&, std::int64_t workers);
using ComponentFfnBackwardKernel = void(const ComponentFfnBackward&, const Workspace&,
                                        const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(component_ffn_forward_scratch, ComponentFfnForwardScratch)
DMAO_DECLARE_CPU_KERNEL(component_ffn_forward, ComponentFfnForwardKernel)
DMAO_DECLARE_CPU_KERNEL(component_ffn_backward_scratch, ComponentFfnBackwardScratch)
DMAO_DECLARE_CPU_KERNEL(component_ffn_backward, ComponentFfnBackwardKernel)
