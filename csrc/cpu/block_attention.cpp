// Attention over what is visible, without a matrix of scores in memory.
//
// Floor: with n visible pairs of a query and a key, over all heads of width D, the multiply-adds
// are
//     forward   4 D n flops,   backward  10 D n flops
//     forward   6 D n flops,   backward  16 D n flops   with relative positions
// at the FMA peak of the core(s). Beside them stand about 20 instructions per vector of scores for
// the exponential; tensors are read and written from once to a few times. Where utterances are
// short that is a good part of the time, unless the rows of the next head are asked for while this
// one is computed (Upcoming).
//
// Forward (block_attention_forward.h): a worker packs keys and values of a head once and goes
// through its tiles of 64 queries; of each, the pieces of up to 256 keys that are seen: scores,
// running softmax, weighted values. Units of work are tiles, divided by their cost.
//
// Backward (block_attention_backward.h): slabs of keys outside, tiles of queries inside. The
// weights are recomputed from what the forward pass kept of each row, so that there are five
// products (eight with positions). The gradients of keys and values stay in cache for a slab, those
// of queries are added up over slabs. Two passes, one by queries and one by keys, would need no
// such sums, but two more products of five: 40 % more work, against the few percent that it costs
// here to visit the queries' gradients once per slab. Where there are too few utterances and heads
// to occupy the cores, an utterance's slabs are divided into parts with sums of their own, joined
// in order. How is a function of the problem, so the bits do not depend on the number of threads.
//
// Masks: pieces that nobody sees are not computed; in those that are seen in part, each product is
// cut to the band of columns that rows need (Band), and only rows that see less have elements
// masked. Relative positions: see PieceBuffer; positions are multiplied only where a row needs
// them, about 5 % more than there are scores. Where the reach is short, the outermost rows simply
// stand for many distances.
//
// bfloat16 is widened when rows are packed; all arithmetic is in float.
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
