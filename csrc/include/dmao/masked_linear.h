// masked_linear: y = act(x w^T + b) over the live blocks of w, and its gradients.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"
#include "dmao/workspace.h"

namespace dmao {

// A rectangle of the weight all of which lives. "Outputs" and "inputs" are those of the product it
// is cut for: rows and columns of w for y = x w^T and for grad_w, columns and rows for grad_x.
struct LivePiece {
    std::int32_t output, outputs;  // first, count
    std::int32_t input, inputs;
    std::int64_t packed;  // where it starts among the packed ones: kPackedOutputs, kPackedInputs
};

// A packed piece takes its outputs times its inputs, each rounded up to a multiple of these.
inline constexpr std::int64_t kPackedOutputs = 16, kPackedInputs = 2;

// The pieces [begin, end) that make the output columns [first, first + count). With "glu" these are
// columns of y, and the pieces make values as well as gates.
struct OutputGroup {
    std::int32_t first, count;
    std::int32_t begin, end;
};

// All of what lives, cut for one product: the groups cover all outputs, in ascending order. Pieces
// of the same outputs follow each other.
struct LivePieces {
    const LivePiece* pieces;
    std::int64_t count;
    const OutputGroup* groups;
    std::int64_t group_count;
    std::int64_t widest;  // the largest group's count
    std::int64_t packed;  // elements that the packed pieces take
};

// Matrices with contiguous rows; the strides are between those.
struct MaskedLinear {
    DType dtype;
    Activation activation;
    std::int64_t tokens, in_width, out_width;  // out_width: the rows of w
    std::int64_t block;                        // edge of the blocks that live or not
    const void* x;                             // [tokens, in_width]
    std::int64_t x_stride;
    const void* w;  // [out_width, in_width]
    std::int64_t w_stride;
};

struct MaskedLinearForward {
    MaskedLinear linear;
    LivePieces by_rows;    // every output has a piece, of no inputs where nothing lives
    const void* b;         // [out_width], or null
    void* y;               // [tokens, out_width], half of that with glu; dense
    void* pre_activation;  // [tokens, out_width], for the backward pass; null: not kept
};

struct MaskedLinearBackward {
    MaskedLinear linear;
    LivePieces for_grad_x;  // every output has a piece
    LivePieces for_grad_w;  // pieces and groups are single blocks
    const void* grad_y;     // as y
    std::int64_t grad_y_stride;
    const void* pre_activation;  // [tokens, out_width]; not read without an activation
    // Null: not wanted.
    void* grad_x;  // [tokens, in_width]
    void* grad_w;  // [out_width, in_width], zero where nothing lives
    void* grad_b;  // [out_width]
};

using MaskedLinearForwardScratch = std::int64_t(const MaskedLinearForward&, std::int64_t workers);
using MaskedLinearForwardKernel = void(const MaskedLinearForward&, const Workspace&,
                                       const ParallelFor&);
using MaskedLinearBackwardScratch = std::int64_t(const MaskedLinearBackward&, std::int64_t workers);
using MaskedLinearBackwardKernel = void(const MaskedLinearBackward&, const Workspace&,
                                        const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(masked_linear_forward_scratch, MaskedLinearForwardScratch)
DMAO_DECLARE_CPU_KERNEL(masked_linear_forward, MaskedLinearForwardKernel)
DMAO_DECLARE_CPU_KERNEL(masked_linear_backward_scratch, MaskedLinearBackwardScratch)
DMAO_DECLARE_CPU_KERNEL(masked_linear_backward, MaskedLinearBackwardKernel)
