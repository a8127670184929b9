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
        walk_entries(piece, [&](std::int64_t at, int count) {
            float w[kVector], g[kVector] = {};
            load_vector(weights + at, count, w);
            if (updated || scoring.grad) load_vector(grads + at, count, g);
#pragma unroll
            for (int i = 0; i < kVector; ++i) terms[i] += score_entry(scoring, w[i], g[i]);
            if (!updated) return;
            float m[kVector], v[kVector];
            load_vector(averages + at, count, m);
            load_vector(squares + at, count, v);
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                const float scaled = g[i] * factor.grad;
                m[i] += factor.average * (scaled - m[i]);
                v[i] = factor.decay * v[i] + factor.square * scaled * scaled;
                w[i] = factor.keep * w[i] -
                       factor.rate * (m[i] / (sqrtf(v[i]) * factor.root + factor.eps));
            }
            store_vector(averages + at, count, m);
            store_vector(squares + at, count, v);
            store_vector(weights + at, count, w);
        });
        if (piece.sums >= 0) store_sums(piece, terms, sums);
    });
}

}  // namespace dmao
