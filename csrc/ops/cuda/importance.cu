// importance_ on GPUs: checks, and which tensors are scored.
#include "averages.cuh"
#include "importance_launch.cuh"

namespace dmao::cuda {
namespace {

constexpr const char* kOp = "importance_";

void importance_(const Tensor& ema, const std::vector<Tensor>& weights,
                 const std::vector<Tensor>& grads, const Tensor& segments,
                 const Tensor& inverse_count, const Name& metric_name, double beta) {
    check(weights.size() == grads.size(), kOp, ": got ", weights.size(), " weights but ",
          grads.size(), " grads");
    const Metric metric = parse_metric(kOp, metric_name);
    ImportanceLaunch launch(metric, check_averages(kOp, ema, inverse_count, beta));
    for (const Segment& s : read_segments(kOp, segments, weights, ema.numel())) {
        const Tensor& weight = weights[s.tensor];
        const Tensor& grad = grads[s.tensor];
        const bool without_grad = metric == Metric::magnitude;
        if (weight.numel() == 0 || (grad.numel() == 0 && !without_grad)) continue;
        const std::string place = "[" + std::to_string(s.tensor) + "]";
        ImportanceTensor tensor{};
        tensor.weight = weight.const_data_ptr();
        tensor.grad = grad.const_data_ptr();
        tensor.weight_type = check_readable(kOp, "weights" + place, weight, ema);
        tensor.grad_type =
            without_grad ? tensor.weight_type : check_readable(kOp, "grads" + place, grad, ema);
        check(without_grad || grad.numel() == weight.numel(), kOp, ": grads", place, " has ",
              grad.numel(), " elements, but its weight has ", weight.numel());
        tensor.repeats = s.repeats;
        tensor.components = s.components;
        tensor.run = s.run;
        tensor.first = s.first;
        launch.add(tensor);
    }
    const OnDevice device(ema);
    const Tensor scratch = torch::stable::new_empty(ema, {launch.scratch()});
    launch.run(device.gpu, scratch.mutable_data_ptr<float>());
}

}  // namespace
}  // namespace dmao::cuda

DMAO_CUDA_LIBRARY(m) { m.impl("importance_", TORCH_BOX(&dmao::cuda::importance_)); }
