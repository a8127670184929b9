// dmao::conv3x3 and the gradient of its filters on the CPU key: checks, allocation, scratch.
#include "dmao/conv3x3.h"

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"
#include "scratch.h"

namespace dmao {
namespace {

constexpr const char* kOp = "conv3x3";

Conv3x3 describe(const Tensor& x, std::int64_t out) {
    check(x.dim() == 4, kOp, ": x must be [B, H, W, C], got ", x.dim(), " dimensions");
    return {float_dtype(kOp, "x", x), x.size(0), x.size(1), x.size(2), x.size(3), out,
            x.const_data_ptr()};
}

Tensor conv3x3(const Tensor& x_, const Tensor& taps_, const std::optional<Tensor>& bias_) {
    const Tensor x = torch::stable::contiguous(x_), taps = torch::stable::contiguous(taps_);
    check(taps.dim() == 4, kOp, ": taps must be [3, 3, C, O], got ", taps.dim(), " dimensions");
    const Conv3x3 conv = describe(x, taps.size(3));
    check_tensor(kOp, "taps", taps, x.scalar_type());
    check(taps.size(0) == 3 && taps.size(1) == 3 && taps.size(2) == conv.in, kOp,
          ": taps must be [3, 3, ", conv.in, ", O]");
    std::optional<Tensor> bias;
    if (bias_.has_value()) {
        bias = torch::stable::contiguous(*bias_);
        check_tensor(kOp, "bias", *bias, x.scalar_type());
        check(bias->numel() == conv.out, kOp, ": bias must be [", conv.out, "]");
    }
    Tensor y = torch::stable::new_empty(
        x, std::vector<std::int64_t>{conv.images, conv.height, conv.width, conv.out});
    if (y.numel() == 0) return y;
    const Conv3x3Forward problem{conv, taps.const_data_ptr(),
                                 bias.has_value() ? bias->const_data_ptr() : nullptr,
                                 y.mutable_data_ptr()};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(conv3x3_forward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(conv3x3_forward)(problem, {scratch, workers}, torch_parallel());
    return y;
}

std::tuple<Tensor, Tensor> conv3x3_backward(const Tensor& grad_y_, const Tensor& x_) {
    const Tensor x = torch::stable::contiguous(x_), grad_y = torch::stable::contiguous(grad_y_);
    check_tensor(kOp, "grad_y", grad_y, x.scalar_type());
    check(grad_y.dim() == 4, kOp, ": grad_y must be [B, H, W, O], got ", grad_y.dim(),
          " dimensions");
    const Conv3x3 conv = describe(x, grad_y.size(3));
    check(grad_y.size(0) == conv.images && grad_y.size(1) == conv.height &&
              grad_y.size(2) == conv.width,
          kOp, ": grad_y must be [", conv.images, ", ", conv.height, ", ", conv.width, ", O]");
    Tensor grad_taps =
        torch::stable::new_empty(x, std::vector<std::int64_t>{3, 3, conv.in, conv.out});
    Tensor grad_bias = torch::stable::new_empty(x, std::vector<std::int64_t>{conv.out});
    const Conv3x3Backward problem{conv, grad_y.const_data_ptr(), grad_taps.mutable_data_ptr(),
                                  grad_bias.mutable_data_ptr()};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(conv3x3_backward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(conv3x3_backward)(problem, {scratch, workers}, torch_parallel());
    return {grad_taps, grad_bias};
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("conv3x3", TORCH_BOX(&dmao::conv3x3));
    m.impl("conv3x3_backward", TORCH_BOX(&dmao::conv3x3_backward));
}
