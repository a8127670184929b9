// Component sums of |w g|, |g|, |w| or w g.
//
// Floor: one read of the weights and one of the gradients (one of both for |w| and |g|) at memory
// bandwidth; the arithmetic hides behind it.
#include "dmao/importance.h"

#include "component_score.h"

namespace dmao::DMAO_ISA_NAMESPACE {

void importance(const ImportanceProblem& problem, const ParallelFor& parallel) {
    parallel.each(problem.count, problem.workers,
                  [&](std::int64_t i) { score(problem.chunks[i], problem.metric); });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
