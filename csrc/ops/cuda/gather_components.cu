// gather_components on GPUs: checks, and the new tensors.
#include <map>
#include <utility>

#include "../component_rows.h"
#include "common.cuh"
#include "gather_components_launch.cuh"

namespace dmao::cuda {
namespace {

constexpr const char* kOp = "gather_components";

using Tensors = std::vector<Tensor>;

// One tensor, all but its result.
GatheredTensor describe(std::size_t i, const Tensor& first, const Tensor& x, const Tensor& rows,
                        const Tensor& given) {
    const std::string number = "[" + std::to_string(i) + "]";
    GatheredTensor tensor{};
    tensor.type =
        with_elements(kOp, "tensors" + number, x, [](auto e) { return type_of<decltype(e)>; });
    check_beside(kOp, "tensors" + number, x, first, x.scalar_type());
    check_beside(kOp, "given" + number, given, x, x.scalar_type());
    check(x.is_contiguous() && given.is_contiguous(), kOp, ": tensors", number, " and given",
          number, " must be contiguous");
    check_component_rows(kOp, i, x, rows, given);
    tensor.x = x.const_data_ptr();
    tensor.given = given.const_data_ptr();
    tensor.repeats = x.size(0);
    tensor.components = rows.size(0);
    tensor.run = x.size(2);
    tensor.old_components = x.size(1);
    tensor.given_components = given.size(1);
    return tensor;
}

Tensors gather_components(const Tensors& tensors, const Tensors& index, const Tensors& given) {
    const std::size_t n = tensors.size();
    check(index.size() == n && given.size() == n && n > 0, kOp, ": got ", n, " tensors, ",
          index.size(), " index and ", given.size(), " given");
    GatherLaunch launch;
    Tensors results;
    // Tensors of one module share an index.
    std::map<std::pair<const void*, std::int64_t>, std::int32_t> first_rows;
    for (std::size_t i = 0; i < n; ++i) {
        const Tensor &x = tensors[i], &rows = index[i];
        GatheredTensor tensor = describe(i, tensors[0], x, rows, given[i]);
        results.push_back(
            torch::stable::new_empty(x, {tensor.repeats, tensor.components, tensor.run}));
        if (results.back().numel() == 0) continue;
        tensor.out = results.back().mutable_data_ptr();
        const std::int64_t* values = rows.const_data_ptr<std::int64_t>();
        const auto [found, is_new] = first_rows.try_emplace({values, tensor.components}, 0);
        if (is_new) found->second = launch.add_index(values, tensor.components);
        launch.add(tensor, found->second);
    }
    const OnDevice device(tensors[0]);
    const Tensor scratch =
        torch::stable::new_empty(tensors[0], {launch.scratch_bytes()}, ScalarType::Byte);
    launch.run(device.gpu, scratch.mutable_data_ptr());
    return results;
}

}  // namespace
}  // namespace dmao::cuda

DMAO_CUDA_LIBRARY(m) { m.impl("gather_components", TORCH_BOX(&dmao::cuda::gather_components)); }
