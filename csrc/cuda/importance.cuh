// Component sums of |w g|, |g|, |w| or w g over all tensors.
//
// Floor: one read of the weights and one of the gradients (one of both for |w| and |g|) at memory
// bandwidth.
#pragma once

#include "scores.cuh"

namespace dmao {

struct ImportanceEntry {
    const void *weight, *grad;
    Cut cut;
    std::int64_t sums;  // where they begin
    std::int32_t end;   // behind its last piece
};

// 64 registers a thread, so that four blocks of 256 threads have room on a multiprocessor.
inline constexpr int kImportanceBlocks = 4;

template <class W, class G>
__global__ void __launch_bounds__(kPieceThreads, kImportanceBlocks)
    sum_importance(DMAO_BY_VALUE(Table<ImportanceEntry>) table, Scoring scoring, float* sums) {
    walk_pieces(table, [&](const ImportanceEntry& entry, std::uint32_t index) {
        const Piece piece = piece_of(entry.cut, entry.sums, index);
        const W* weights = static_cast<const W*>(entry.weight);
        const G* grads = static_cast<const G*>(entry.grad);
        float terms[kVector] = {};
        const auto starts_quads = [&](std::int64_t at) {
            return (!scoring.weight || starts_quad(weights + at)) &&
                   (!scoring.grad || starts_quad(grads + at));
        };
        walk_entries(piece, starts_quads, [&](auto kind, std::int64_t at, int count) {
            // What is not there is zero in what is read.
            Eight<W> weight{};
            Eight<G> grad{};
            if (scoring.weight) weight = load_eight(kind, weights + at, count);
            if (scoring.grad) grad = load_eight(kind, grads + at, count);
#pragma unroll
            for (int i = 0; i < kVector; ++i) terms[i] += score_entry(scoring, weight[i], grad[i]);
        });
        store_sums(piece, terms, sums);
    });
}

}  // namespace dmao
