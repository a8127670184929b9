// dmao::importance_ on the CPU key: checks, the cut into chunks, the moving average.
#include "dmao/importance.h"

#include "component_chunks.h"

namespace dmao {
namespace {

constexpr const char* kOp = "importance_";

void importance_(const Tensor& ema, const std::vector<Tensor>& weights,
                 const std::vector<Tensor>& grads, const Tensor& segments,
                 const Tensor& inverse_count, const Name& metric_name, double beta) {
    check(weights.size() == grads.size(), kOp, ": got ", weights.size(), " weights but ",
          grads.size(), " grads");
    const Metric metric = parse_metric(kOp, metric_name);

    std::vector<ImportanceChunk> chunks;
    PartialSums sums;
    for (const Segment& s : read_segments(kOp, ema, segments, inverse_count, weights)) {
        const Tensor& weight = weights[s.tensor];
        const Tensor& grad = grads[s.tensor];
        if (weight.numel() == 0 || (grad.numel() == 0 && metric != Metric::magnitude)) continue;
        ImportanceChunk tensor{};
        tensor.weight_dtype = float_dtype(kOp, "weights[" + std::to_string(s.tensor) + "]", weight);
        tensor.weight = weight.const_data_ptr();
        if (metric != Metric::magnitude) {
            check(grad.numel() == weight.numel(), kOp, ": grads[", s.tensor, "] has ", grad.numel(),
                  " elements, but its weight has ", weight.numel());
            tensor.grad_dtype = float_dtype(kOp, "grads[" + std::to_string(s.tensor) + "]", grad);
            tensor.grad = grad.const_data_ptr();
        }
        cut(s.repeats, s.components * s.run, s.run, tensor, [&](const ImportanceChunk& chunk) {
            chunks.push_back(chunk);
            sums.add(chunk, s.first);
        });
    }
    sums.allocate();
    for (std::size_t i = 0; i < chunks.size(); ++i) chunks[i].sums = sums.of_chunk(i);
    const ImportanceProblem problem{chunks.data(), static_cast<std::int64_t>(chunks.size()),
                                    torch::stable::get_num_threads(), metric};
    DMAO_CPU_KERNEL(importance)(problem, torch_parallel());
    sums.average(ema, inverse_count, beta);
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) { m.impl("importance_", TORCH_BOX(&dmao::importance_)); }
