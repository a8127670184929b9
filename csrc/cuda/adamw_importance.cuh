// AdamW (arXiv 1711.05101) on all parameters and, in the same walk, the component sums of
// importance.
//
// Floor: w, g, m, v are read and w, m, v written once (28 bytes per float32 parameter) at memory
// bandwidth.
#pragma once

#include "scores.cuh"

namespace dmao {

// What a step does to a parameter, g' being the gradient times `grad`:
//     m <- m + average (g' - m);  v <- decay v + square g'^2;
//     w <- keep w - rate m / (sqrt(v) root + eps)
struct StepFactors {
    float grad, average, decay, square, root, eps, keep, rate;
};

// Numbers of a group, as in GROUP_COLUMNS of the reference, and the step of one parameter.
struct StepEntry {
    double lr, beta1, beta2, eps, weight_decay, maximize;
    float* step;  // to be counted here; null: it has been, and is `done`
    float done;
    std::int32_t place;  // of its factors
};

inline constexpr int kStepThreads = 64;

// A thread a parameter: counts its step, and makes its factors.
static __global__ void __launch_bounds__(kStepThreads)
    count_steps(DMAO_BY_VALUE(Table<StepEntry>) table, const float* grad_factor,
                StepFactors* factors) {
    const int i = static_cast<int>(blockIdx.x) * kStepThreads + static_cast<int>(threadIdx.x);
    if (i >= table.count) return;
    const StepEntry& entry = table.entries[i];
    float done = entry.done;
    if (entry.step != nullptr) {
        done = *entry.step + 1.0f;
        *entry.step = done;
    }
    const double sign = entry.maximize != 0.0 ? -1.0 : 1.0;
    const double scale = grad_factor == nullptr ? 1.0 : *grad_factor;
    StepFactors factor;
    factor.grad = static_cast<float>(sign * scale);
    factor.average = static_cast<float>(1.0 - entry.beta1);
    factor.decay = static_cast<float>(entry.beta2);
    factor.square = static_cast<float>(1.0 - entry.beta2);
    factor.root = static_cast<float>(1.0 / sqrt(1.0 - pow(entry.beta2, double{done})));
    factor.eps = static_cast<float>(entry.eps);
    factor.keep = static_cast<float>(1.0 - entry.lr * entry.weight_decay);
    factor.rate = static_cast<float>(entry.lr / (1.0 - pow(entry.beta1, double{done})));
    factors[entry.place] = factor;
}

struct AdamWEntry {
    void* weight;
    const void* grad;
    void *average, *square;  // moments; null: it is only scored
    Cut cut;
    std::int64_t sums;     // where they begin; negative: it has none
    std::int32_t factors;  // their place
    std::int32_t end;      // behind its last piece
};

// 80 registers a thread, so that three blocks of 256 threads have room on a multiprocessor.
inline constexpr int kAdamWBlocks = 3;

template <class E>
__global__ void __launch_bounds__(kPieceThreads, kAdamWBlocks)
    step_adamw(DMAO_BY_VALUE(Table<AdamWEntry>) table, const StepFactors* factors, Scoring scoring,
               float* sums) {
    walk_pieces(table, [&](const AdamWEntry& entry, std::uint32_t index) {
        const Piece piece = piece_of(entry.cut, entry.sums, index);
        E* weights = static_cast<E*>(entry.weight);
        const E* grads = static_cast<const E*>(entry.grad);
        E* averages = static_cast<E*>(entry.average);
        E* squares = static_cast<E*>(entry.square);
        const bool updated = averages != nullptr;
        StepFactors factor{};
        if (updated) factor = factors[entry.factors];
        float terms[kVector] = {};
        const bool reads_grad = updated || scoring.grad;
        const auto starts_quads = [&](std::int64_t at) {
            return starts_quad(weights + at) && (!reads_grad || starts_quad(grads + at)) &&
                   (!updated || (starts_quad(averages + at) && starts_quad(squares + at)));
        };
        walk_entries(piece, starts_quads, [&](auto kind, std::int64_t at, int count) {
            const Eight<E> weight = load_eight(kind, weights + at, count);
            Eight<E> grad{}, average{}, square{};
            if (reads_grad) grad = load_eight(kind, grads + at, count);
            if (updated) {
                average = load_eight(kind, averages + at, count);
                square = load_eight(kind, squares + at, count);
            }
#pragma unroll
            for (int i = 0; i < kVector; ++i) terms[i] += score_entry(scoring, weight[i], grad[i]);
            if (!updated) return;
            float w[kVector], m[kVector], v[kVector];
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                const float scaled = grad[i] * factor.grad;
                m[i] = average[i] + factor.average * (scaled - average[i]);
                v[i] = factor.decay * square[i] + factor.square * scaled * scaled;
                w[i] = factor.keep * weight[i] -
                       factor.rate * (m[i] / (sqrtf(v[i]) * factor.root + factor.eps));
            }
            store_eight(kind, averages + at, count, m);
            store_eight(kind, squares + at, count, v);
            store_eight(kind, weights + at, count, w);
        });
        if (piece.sums >= 0) store_sums(piece, terms, sums);
    });
}

}  // namespace dmao
