// adamw_importance_ on GPUs: checks, the steps that are counted on the host, and which parameters
// are updated and scored.
#include <optional>

#include "../groups.h"
#include "adamw_importance_launch.cuh"
#include "averages.cuh"

namespace dmao::cuda {
namespace {

constexpr const char* kOp = "adamw_importance_";

struct Parameters : ParameterLists {
    const Tensor& like;

    void check_alike(const char* list, const Tensors& tensors, std::size_t i) const {
        const Tensor& tensor = tensors[i];
        const std::string name = list + ("[" + std::to_string(i) + "]");
        check_beside(kOp, name, tensor, like, weights[i].scalar_type());
        check(tensor.numel() == weights[i].numel() && tensor.is_contiguous(), kOp, ": ", name,
              " must be contiguous and have its parameter's number of elements");
    }

    void check_one(std::size_t i) const {
        check_readable(kOp, "params[" + std::to_string(i) + "]", weights[i], like);
        if (updated(i) || grads[i].numel() != 0) check_alike("grads", grads, i);
        if (!updated(i)) return;
        check_alike("exp_avgs", exp_avgs, i);
        check_alike("exp_avg_sqs", exp_avg_sqs, i);
        const Tensor& step = steps[i];
        const std::string name = "steps[" + std::to_string(i) + "]";
        if (step.is_cpu()) {
            check_tensor(kOp, name, step, ScalarType::Float);
        } else {
            check_beside(kOp, name, step, like, ScalarType::Float);
        }
    }

    AdamWParameter parameter(std::size_t i) const {
        AdamWParameter parameter{};
        parameter.weight = weights[i].mutable_data_ptr();
        parameter.grad = grads[i].const_data_ptr();
        parameter.type = element_type(kOp, "params", weights[i]);
        if (updated(i)) {
            parameter.average = exp_avgs[i].mutable_data_ptr();
            parameter.square = exp_avg_sqs[i].mutable_data_ptr();
        }
        return parameter;
    }
};

// The places of the factors; steps on the host are counted here.
std::vector<std::int32_t> add_steps(const Parameters& all, const Tensor& groups,
                                    const Tensor& group_of, AdamWLaunch& launch) {
    std::vector<std::int32_t> places(all.size(), -1);
    const double* table = groups.const_data_ptr<double>();
    const std::int64_t* rows = group_of.const_data_ptr<std::int64_t>();
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (!all.updated(i)) continue;
        const double* group = table + 6 * rows[i];
        float* step = all.steps[i].mutable_data_ptr<float>();
        if (is_here(all.steps[i])) {
            places[i] = launch.add_step(group, step, 0.0f);
        } else {
            *step += 1.0f;
            places[i] = launch.add_step(group, nullptr, *step);
        }
    }
    return places;
}

void adamw_importance_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                       const Tensors& exp_avg_sqs, const Tensors& steps, const Tensor& groups,
                       const Tensor& group_of, const std::optional<Tensor>& grad_factor,
                       const Tensor& ema, const Tensor& segments, const Tensor& inverse_count,
                       const Name& metric_name, double beta) {
    const Parameters all{{params, grads, exp_avgs, exp_avg_sqs, steps}, ema};
    all.check_lengths(kOp);
    const Metric metric = parse_metric(kOp, metric_name);
    AdamWLaunch launch(metric, check_averages(kOp, ema, inverse_count, beta));
    for (std::size_t i = 0; i < params.size(); ++i) all.check_one(i);
    check_groups(kOp, groups, group_of, static_cast<std::int64_t>(params.size()));
    if (grad_factor) {
        check_beside(kOp, "grad_factor", *grad_factor, ema, ScalarType::Float);
        check(grad_factor->numel() == 1, kOp, ": grad_factor must have one element");
    }
    const std::vector<Segment> scored = read_segments(kOp, segments, params, ema.numel());
    const std::vector<bool> named = scored_once(kOp, scored, params.size());

    const std::vector<std::int32_t> factors = add_steps(all, groups, group_of, launch);
    for (const Segment& s : scored) {
        const bool readable = grads[s.tensor].numel() != 0 || metric == Metric::magnitude;
        if (params[s.tensor].numel() == 0 || !readable) continue;
        launch.add_scored(all.parameter(s.tensor), factors[s.tensor], s.repeats, s.components,
                          s.run, s.first);
    }
    for (std::size_t i = 0; i < params.size(); ++i) {
        if (named[i] || !all.updated(i) || params[i].numel() == 0) continue;
        launch.add_updated(all.parameter(i), factors[i], params[i].numel());
    }
    const OnDevice device(ema);
    const Tensor scratch = torch::stable::new_empty(ema, {launch.scratch()});
    launch.run(device.gpu, grad_factor ? grad_factor->const_data_ptr<float>() : nullptr,
               scratch.mutable_data_ptr<float>());
}

}  // namespace
}  // namespace dmao::cuda

DMAO_CUDA_LIBRARY(m) { m.impl("adamw_importance_", TORCH_BOX(&dmao::cuda::adamw_importance_)); }
