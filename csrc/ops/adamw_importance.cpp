// dmao::adamw_importance_ on the CPU key: checks, the factors of every parameter, the cut into
// chunks, the moving average.
#include "dmao/adamw_importance.h"

#include <optional>

#include "component_chunks.h"
#include "groups.h"

namespace dmao {
namespace {

constexpr const char* kOp = "adamw_importance_";

struct Parameters : ParameterLists {
    void check_alike(const char* list, const Tensors& tensors, std::size_t i) const {
        const Tensor& tensor = tensors[i];
        check(tensor.numel() == weights[i].numel() &&
                  tensor.scalar_type() == weights[i].scalar_type() && tensor.is_contiguous() &&
                  tensor.is_cpu(),
              kOp, ": ", list, "[", i, "] must be a contiguous CPU tensor of its parameter's dtype",
              " and number of elements");
    }

    void check_one(std::size_t i) const {
        float_dtype(kOp, "params[" + std::to_string(i) + "]", weights[i]);
        if (updated(i) || grads[i].numel() != 0) check_alike("grads", grads, i);
        if (!updated(i)) return;
        check_alike("exp_avgs", exp_avgs, i);
        check_alike("exp_avg_sqs", exp_avg_sqs, i);
        check_tensor(kOp, "steps[" + std::to_string(i) + "]", steps[i], ScalarType::Float);
    }

    AdamWChunk chunk(std::size_t i, const AdamWFactors& factors) const {
        AdamWChunk chunk{};
        chunk.part.weight = weights[i].const_data_ptr();
        chunk.part.grad = grads[i].const_data_ptr();
        chunk.part.weight_dtype = chunk.part.grad_dtype =
            weights[i].scalar_type() == ScalarType::Float ? DType::float32 : DType::bfloat16;
        if (updated(i)) {
            chunk.weight = weights[i].mutable_data_ptr();
            chunk.exp_avg = exp_avgs[i].mutable_data_ptr();
            chunk.exp_avg_sq = exp_avg_sqs[i].mutable_data_ptr();
            chunk.factors = &factors;
        }
        return chunk;
    }
};

// group: lr, beta1, beta2, eps, weight_decay, maximize (GROUP_COLUMNS of the reference).
AdamWFactors factors_of(const double* group, double step, double grad_factor) {
    const double lr = group[0], beta1 = group[1], beta2 = group[2];
    AdamWFactors f{};
    f.grad_factor = static_cast<float>(group[5] != 0.0 ? -grad_factor : grad_factor);
    f.average = static_cast<float>(1.0 - beta1);
    f.decay = static_cast<float>(beta2);
    f.square = static_cast<float>(1.0 - beta2);
    f.root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step)));
    f.eps = static_cast<float>(group[3]);
    f.keep = static_cast<float>(1.0 - lr * group[4]);
    f.rate = static_cast<float>(lr / (1.0 - std::pow(beta1, step)));
    return f;
}

// Counts every parameter's step and returns the factors of the new one.
std::vector<AdamWFactors> count_steps(const Parameters& all, const Tensor& groups,
                                      const Tensor& group_of, double grad_factor) {
    std::vector<AdamWFactors> factors(all.size());
    const double* table = groups.const_data_ptr<double>();
    const std::int64_t* rows = group_of.const_data_ptr<std::int64_t>();
    for (std::size_t i = 0; i < factors.size(); ++i) {
        if (!all.updated(i)) continue;
        float& step = *all.steps[i].mutable_data_ptr<float>();
        step += 1.0f;
        factors[i] = factors_of(table + 6 * rows[i], step, grad_factor);
    }
    return factors;
}

void adamw_importance_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                       const Tensors& exp_avg_sqs, const Tensors& steps, const Tensor& groups,
                       const Tensor& group_of, const std::optional<Tensor>& grad_factor,
                       const Tensor& ema, const Tensor& segments, const Tensor& inverse_count,
                       const Name& metric_name, double beta) {
    const Parameters all{{params, grads, exp_avgs, exp_avg_sqs, steps}};
    all.check_lengths(kOp);
    for (std::size_t i = 0; i < params.size(); ++i) all.check_one(i);
    check_groups(kOp, groups, group_of, static_cast<std::int64_t>(params.size()));
    double factor = 1.0;
    if (grad_factor) {
        check_tensor(kOp, "grad_factor", *grad_factor, ScalarType::Float);
        check(grad_factor->numel() == 1, kOp, ": grad_factor must have one element");
        factor = *grad_factor->const_data_ptr<float>();
    }
    const Metric metric = parse_metric(kOp, metric_name);
    const std::vector<Segment> scored = read_segments(kOp, ema, segments, inverse_count, params);
    const std::vector<bool> named = scored_once(kOp, scored, params.size());

    const std::vector<AdamWFactors> factors = count_steps(all, groups, group_of, factor);
    std::vector<AdamWChunk> chunks;
    const auto add = [&](AdamWChunk whole, const ImportanceChunk& part) {
        whole.part = part;
        chunks.push_back(whole);
    };
    PartialSums sums;
    for (const Segment& s : scored) {  // first, so that the i-th sums are those of the i-th chunk
        const bool readable = grads[s.tensor].numel() != 0 || metric == Metric::magnitude;
        if (params[s.tensor].numel() == 0 || !readable) continue;
        const AdamWChunk whole = all.chunk(s.tensor, factors[s.tensor]);
        cut(s.repeats, s.components * s.run, s.run, whole.part, [&](const ImportanceChunk& part) {
            add(whole, part);
            sums.add(part, s.first);
        });
    }
    sums.allocate();
    for (std::size_t i = 0; i < chunks.size(); ++i) chunks[i].part.sums = sums.of_chunk(i);
    for (std::size_t i = 0; i < params.size(); ++i) {
        const std::int64_t numel = params[i].numel();
        if (named[i] || !all.updated(i) || numel == 0) continue;
        const AdamWChunk whole = all.chunk(i, factors[i]);
        cut(1, numel, numel, whole.part, [&](const ImportanceChunk& part) { add(whole, part); });
    }
    const AdamWProblem problem{chunks.data(), static_cast<std::int64_t>(chunks.size()),
                               torch::stable::get_num_threads(), metric};
    DMAO_CPU_KERNEL(adamw_importance)(problem, torch_parallel());
    sums.average(ema, inverse_count, beta);
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("adamw_importance_", TORCH_BOX(&dmao::adamw_importance_));
}
