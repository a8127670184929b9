// Attention over what is visible, without a matrix of scores in memory.
#include "dmao/block_attention.h"

#include "block_attention_backward.h"
#include "block_attention_forward.h"

namespace dmao::DMAO_ISA_NAMESPACE {

std::int64_t block_attention_forward_scratch(const BlockAttentionForward& problem,
                                             std::int64_t workers) {
    return ForwardScratch(problem.attention, {nullptr, workers}).arena.used();
}

void block_attention_forward(const BlockAttentionForward& problem, const Workspace& workspace,
                             const ParallelFor& parallel) {
    problem.attention.dtype == DType::float32 ? forward<float>(problem, workspace, parallel)
                                              : forward<bfloat16>(problem, workspace, parallel);
}

std::int64_t block_attention_backward_scratch(const BlockAttentionBackward& problem,
                                              std::int64_t workers) {
    return BackwardScratch(problem.attention, {nullptr, workers}).arena.used();
}

void block_attention_backward(const BlockAttentionBackward& problem, const Workspace& workspace,
                              const ParallelFor& parallel) {
    problem.attention.dtype == DType::float32 ? backward<float>(problem, workspace, parallel)
                                              : backward<bfloat16>(problem, workspace, parallel);
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
