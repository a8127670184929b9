// AdamW (arXiv 1711.05101) on all parameters and, where a chunk is scored, its component sums on
// the way: the entries are formed from the weights and gradients that are in registers anyway.
//
// Floor: w, g, m, v are read and w, m, v written once (28 bytes per float32 parameter) at memory
// bandwidth; a division and a square root per vector hide behind it.
#include "dmao/adamw_importance.h"

#include "component_score.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// Asks for what is read in a few vectors' time. Four streams that are written as well are more than
// the hardware foresees in time.
template <class T>
void ahead(const T* p) {
    prefetch(p + 256 / sizeof(T));
}

// One step of the entries at place i; returns weight and gradient as they were before.
template <class T>
class Step {
  public:
    struct Before {
        Vec weight, grad;
    };

    explicit Step(const AdamWChunk& chunk)
        : weight_(static_cast<T*>(chunk.weight)),
          grad_(static_cast<const T*>(chunk.part.grad)),
          exp_avg_(static_cast<T*>(chunk.exp_avg)),
          exp_avg_sq_(static_cast<T*>(chunk.exp_avg_sq)),
          grad_factor_(chunk.factors->grad_factor),
          average_(chunk.factors->average),
          decay_(chunk.factors->decay),
          square_(chunk.factors->square),
          root_(chunk.factors->root),
          eps_(chunk.factors->eps),
          keep_(chunk.factors->keep),
          minus_rate_(-chunk.factors->rate) {}

    // `count...` is nothing for a full vector, the number of entries for a part of one.
    template <class... Count>
    Before operator()(std::int64_t i, Count... count) const {
        ahead(weight_ + i);
        ahead(grad_ + i);
        ahead(exp_avg_ + i);
        ahead(exp_avg_sq_ + i);
        const Vec w = load(weight_ + i, count...), g = load(grad_ + i, count...);
        const Vec scaled = g * grad_factor_;
        Vec m = load(exp_avg_ + i, count...), v = load(exp_avg_sq_ + i, count...);
        m = fma(average_, scaled - m, m);
        v = fma(decay_, v, square_ * scaled * scaled);
        const Vec direction = m / fma(sqrt(v), root_, eps_);
        store(exp_avg_ + i, m, count...);
        store(exp_avg_sq_ + i, v, count...);
        store(weight_ + i, fma(minus_rate_, direction, w * keep_), count...);
        return {w, g};
    }

  private:
    T* weight_;
    const T* grad_;
    T* exp_avg_;
    T* exp_avg_sq_;
    Vec grad_factor_, average_, decay_, square_, root_, eps_, keep_, minus_rate_;
};

// A step as a term of the component sums.
template <Metric metric, class T>
struct ScoredStep {
    Step<T> step;

    template <class... Count>
    Vec operator()(std::int64_t i, Count... count) const {
        const auto [weight, grad] = step(i, count...);
        return entry<metric>(weight, grad);
    }
};

template <class T>
void update(const ImportanceChunk& part, const Step<T>& step) {
    constexpr int w = Vec::width;
    std::int64_t i = part.row_begin * part.row_length + part.column_begin;
    const std::int64_t end = (part.row_end - 1) * part.row_length + part.column_end;
    for (; i + w <= end; i += w) step(i);
    if (i < end) step(i, static_cast<int>(end - i));
}

template <class T>
void step_chunk(const AdamWChunk& chunk, Metric metric) {
    const Step<T> step(chunk);
    if (chunk.part.sums == nullptr) return update(chunk.part, step);
    switch (metric) {
        case Metric::taylor:
            return sum_chunk(chunk.part, ScoredStep<Metric::taylor, T>{step});
        case Metric::gradient:
            return sum_chunk(chunk.part, ScoredStep<Metric::gradient, T>{step});
        case Metric::magnitude:
            return sum_chunk(chunk.part, ScoredStep<Metric::magnitude, T>{step});
        case Metric::signed_taylor:
            return sum_chunk(chunk.part, ScoredStep<Metric::signed_taylor, T>{step});
    }
}

void run(const AdamWChunk& chunk, Metric metric) {
    if (chunk.exp_avg == nullptr) {
        score(chunk.part, metric);
    } else if (chunk.part.weight_dtype == DType::float32) {
        step_chunk<float>(chunk, metric);
    } else {
        step_chunk<bfloat16>(chunk, metric);
    }
}

}  // namespace

void adamw_importance(const AdamWProblem& problem, const ParallelFor& parallel) {
    parallel.each(problem.count, problem.workers,
                  [&](std::int64_t i) { run(problem.chunks[i], problem.metric); });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
