// block_attention: softmax(scale * s) v over the keys that each query sees, with relative
// positions, and its gradients.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"
#include "dmao/workspace.h"

namespace dmao {

// [rows, heads, width] with a contiguous last axis; strides in elements.
struct AttentionRows {
    const void* data;
    std::int64_t row_stride, head_stride;
};

// All tensors are of one dtype; pointers of what is absent are null.
struct BlockAttention {
    DType dtype;
    std::int64_t utterances, rows, heads, width;
    const std::int32_t* spans;  // [utterances, 2] first row and length; ascending, disjoint
    std::int64_t longest;       // the largest of these lengths
    AttentionRows q, k, v;
    // Query i sees key j if i - left <= j <= i + right (each negative: unbounded), and
    // i / chunk - left_chunks <= j / chunk <= i / chunk (chunk 0: always; left_chunks negative:
    // unbounded), and the mask of block x block elements has the block of both.
    std::int64_t left, right, chunk, left_chunks, block;
    const std::int32_t *row_offsets, *column_ids;  // null row_offsets: no mask
    const bool* head_mask;  // [heads]
    AttentionRows rel_pos;  // [2 reach + 1, heads, width]
    std::int64_t reach;
    const void *content_bias, *position_bias;  // [heads, width]
    double p;                                  // dropout probability, in [0, 1)
    std::uint64_t seed;
    double scale;
};

struct BlockAttentionForward {
    BlockAttention attention;
    void* out;   // [rows, heads, width]
    float* lse;  // [heads, rows] log of the sum of the exponentials
};

struct BlockAttentionBackward {
    BlockAttention attention;
    AttentionRows grad_out, out;
    const float* lse;
    void *grad_q, *grad_k, *grad_v;             // [rows, heads, width]
    void* grad_rel_pos;                         // [2 reach + 1, heads, width]
    void *grad_content_bias, *grad_position_bias;  // [heads, width]
};

using BlockAttentionForwardScratch = std::int64_t(const BlockAttentionForward&,
                                                  std::int64_t workers);
using BlockAttentionForwardKernel = void(const BlockAttentionForward&, const Workspace&,
                                         const ParallelFor&);
using BlockAttentionBackwardScratch = std::int64_t(const BlockAttentionBackward&,
                                                   std::int64_t workers);
using BlockAttentionBackwardKernel = void(const BlockAttentionBackward&, const Workspace&,
                                          const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(block_attention_forward_scratch, BlockAttentionForwardScratch)
DMAO_DECLARE_CPU_KERNEL(block_attention_forward, BlockAttentionForwardKernel)
DMAO_DECLARE_CPU_KERNEL(block_attention_backward_scratch, BlockAttentionBackwardScratch)
DMAO_DECLARE_CPU_KERNEL(block_attention_backward, BlockAttentionBackwardKernel)
