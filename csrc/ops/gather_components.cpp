// dmao::gather_components on the CPU key: checks, the new tensors, the cut into chunks.
#include "dmao/gather_components.h"

#include <algorithm>
#include <vector>

#include "component_rows.h"

namespace dmao {
namespace {

constexpr const char* kOp = "gather_components";
// Elements of one chunk: large against the cost of handing one out, small against a tensor.
constexpr std::int64_t kChunk = 1 << 16;

using Tensors = std::vector<Tensor>;

// One tensor, all but its result.
GatherTensor describe(std::size_t i, const Tensor& x, const Tensor& rows, const Tensor& given) {
    const std::string number = "[" + std::to_string(i) + "]";
    GatherTensor tensor{};
    tensor.dtype = float_dtype(kOp, "tensors" + number, x);
    check_tensor(kOp, "given" + number, given, x.scalar_type());
    check_component_rows(kOp, i, x, rows, given);
    tensor.x = x.const_data_ptr();
    tensor.given = given.const_data_ptr();
    tensor.index = rows.const_data_ptr<std::int64_t>();
    tensor.components = x.size(1);
    tensor.given_components = given.size(1);
    tensor.count = rows.size(0);
    tensor.run = x.size(2);
    return tensor;
}

Tensors gather_components(const Tensors& tensors, const Tensors& index, const Tensors& given) {
    const std::size_t n = tensors.size();
    check(index.size() == n && given.size() == n, kOp, ": got ", n, " tensors, but ", index.size(),
          " index, ", given.size(), " given");
    std::vector<GatherTensor> described;
    for (std::size_t i = 0; i < n; ++i) {
        described.push_back(describe(i, tensors[i], index[i], given[i]));
    }
    Tensors results;
    std::vector<GatherChunk> chunks;
    for (std::size_t i = 0; i < n; ++i) {
        const Tensor& x = tensors[i];
        GatherTensor& tensor = described[i];
        results.push_back(torch::stable::new_empty(x, {x.size(0), tensor.count, x.size(2)}));
        const std::int64_t numel = results.back().numel();
        tensor.out = results.back().mutable_data_ptr();
        for (std::int64_t begin = 0; begin < numel; begin += kChunk) {
            chunks.push_back(
                {static_cast<std::int64_t>(i), begin, std::min(begin + kChunk, numel)});
        }
    }
    const GatherProblem problem{described.data(), chunks.data(),
                                static_cast<std::int64_t>(chunks.size()),
                                torch::stable::get_num_threads()};
    DMAO_CPU_KERNEL(gather_components)(problem, torch_parallel());
    return results;
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("gather_components", TORCH_BOX(&dmao::gather_components));
}
