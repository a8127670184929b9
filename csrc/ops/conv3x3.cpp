// dmao::conv3x3 and its gradients on the CPU key: checks, allocation, scratch.
#include "dmao/conv3x3.h"

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"
#include "pages.h"
#include "scratch.h"

namespace dmao {
namespace {

constexpr const char* kOp = "conv3x3";
using Sizes = std::vector<std::int64_t>;

// A description, and the tensor that it points to.
struct Described {
    Conv3x3 conv;
    std::optional<Tensor> valid;

    Sizes image_sizes() const { return {conv.images, conv.height, conv.width, conv.in}; }
    Sizes output_sizes() const {
        return {conv.images, conv.height / conv.time, conv.width / conv.frequency, conv.out};
    }
};

// Of x only its sizes; any strides. pooling: none, or rows and columns of a window.
Described describe(const Tensor& x, DType dtype, std::int64_t out,
                   const std::optional<Tensor>& valid, const Sizes& pooling) {
    check(x.dim() == 4, kOp, ": x must be [B, H, W, C], got ", x.dim(), " dimensions");
    check(pooling.empty() || (pooling.size() == 2 && pooling[0] >= 1 && pooling[1] >= 1 &&
                              pooling[0] <= kConv3x3Window / pooling[1]),
          kOp, ": pooling must be two sizes of a window of at most ", kConv3x3Window, " pixels");
    const bool pooled = !pooling.empty();
    Described d{{dtype, x.size(0), x.size(1), x.size(2), x.size(3), out, pooled,
                 pooled ? pooling[0] : 1, pooled ? pooling[1] : 1, nullptr},
                std::nullopt};
    if (valid.has_value()) {
        d.valid = torch::stable::contiguous(*valid);
        check_tensor(kOp, "valid", *d.valid, ScalarType::Bool);
        const Sizes rows = d.output_sizes();
        check(d.valid->dim() == 2 && d.valid->size(0) == rows[0] && d.valid->size(1) == rows[1],
              kOp, ": valid must be [", rows[0], ", ", rows[1], "]");
        d.conv.valid = static_cast<const bool*>(d.valid->const_data_ptr());
    }
    return d;
}

Tensor checked(const char* name, const Tensor& tensor_, ScalarType dtype, const Sizes& sizes) {
    const Tensor tensor = torch::stable::contiguous(tensor_);
    check_tensor(kOp, name, tensor, dtype);
    bool fits = tensor.dim() == static_cast<std::int64_t>(sizes.size());
    for (std::size_t i = 0; fits && i < sizes.size(); ++i) fits = tensor.size(i) == sizes[i];
    check(fits, kOp, ": ", name, " has wrong sizes");
    return tensor;
}

// What backward operators are told about y: grad_y, and choice with pooling.
struct Gradient {
    Tensor grad_y, choice;

    Gradient(const Described& d, ScalarType dtype, const Tensor& grad_y_, const Tensor& choice_)
        : grad_y(checked("grad_y", grad_y_, dtype, d.output_sizes())),
          choice(checked("choice", choice_, ScalarType::Byte,
                         d.conv.pooled ? d.output_sizes() : Sizes{0})) {}

    const std::uint8_t* choice_or_null(const Described& d) const {
        return d.conv.pooled ? static_cast<const std::uint8_t*>(choice.const_data_ptr()) : nullptr;
    }
};

std::tuple<Tensor, Tensor> conv3x3(const Tensor& x_, const Tensor& taps_,
                                   const std::optional<Tensor>& bias_,
                                   const std::optional<Tensor>& valid, const Sizes& pooling) {
    const Tensor x = torch::stable::contiguous(x_);
    check(taps_.dim() == 4, kOp, ": taps must be [3, 3, C, O], got ", taps_.dim(), " dimensions");
    const std::int64_t out = taps_.size(3);
    const Described d = describe(x, float_dtype(kOp, "x", x), out, valid, pooling);
    const Tensor taps = checked("taps", taps_, x.scalar_type(), {3, 3, d.conv.in, out});
    std::optional<Tensor> bias;
    if (bias_.has_value()) bias = checked("bias", *bias_, x.scalar_type(), {out});
    Tensor y = on_large_pages(torch::stable::new_empty(x, d.output_sizes()));
    Tensor choice =
        torch::stable::new_empty(x, d.conv.pooled ? d.output_sizes() : Sizes{0}, ScalarType::Byte);
    if (y.numel() == 0) return {y, choice};
    const Conv3x3Forward problem{
        d.conv,
        x.const_data_ptr(),
        taps.const_data_ptr(),
        bias.has_value() ? bias->const_data_ptr() : nullptr,
        y.mutable_data_ptr(),
        d.conv.pooled ? static_cast<std::uint8_t*>(choice.mutable_data_ptr()) : nullptr};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(conv3x3_forward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(conv3x3_forward)(problem, {scratch, workers}, torch_parallel());
    return {y, choice};
}

// taps [3, 3, O, C]: upside down and back to front. Of x only sizes and dtype matter.
Tensor conv3x3_backward_images(const Tensor& grad_y, const Tensor& choice, const Tensor& taps_,
                               const Tensor& x, const std::optional<Tensor>& valid,
                               const Sizes& pooling) {
    check(taps_.dim() == 4, kOp, ": taps must be [3, 3, O, C], got ", taps_.dim(), " dimensions");
    const std::int64_t out = taps_.size(2);
    const Tensor own_taps = torch::stable::contiguous(taps_);
    const Described d = describe(x, float_dtype(kOp, "taps", own_taps), out, valid, pooling);
    const Tensor taps = checked("taps", own_taps, x.scalar_type(), {3, 3, out, d.conv.in});
    const Gradient gradient(d, x.scalar_type(), grad_y, choice);
    Tensor grad_x = on_large_pages(torch::stable::new_empty(x, d.image_sizes()));
    if (grad_x.numel() == 0) return grad_x;
    const Conv3x3Images problem{d.conv, gradient.grad_y.const_data_ptr(),
                                gradient.choice_or_null(d), taps.const_data_ptr(),
                                grad_x.mutable_data_ptr()};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(conv3x3_images_scratch)(problem, workers));
    DMAO_CPU_KERNEL(conv3x3_images)(problem, {scratch, workers}, torch_parallel());
    return grad_x;
}

std::tuple<Tensor, Tensor> conv3x3_backward_filters(const Tensor& grad_y, const Tensor& choice,
                                                    const Tensor& x_,
                                                    const std::optional<Tensor>& valid,
                                                    const Sizes& pooling) {
    const Tensor x = torch::stable::contiguous(x_);
    check(grad_y.dim() == 4, kOp, ": grad_y must be [B, H, W, O], got ", grad_y.dim(),
          " dimensions");
    const Described d = describe(x, float_dtype(kOp, "x", x), grad_y.size(3), valid, pooling);
    const Gradient gradient(d, x.scalar_type(), grad_y, choice);
    Tensor grad_taps = torch::stable::new_empty(x, Sizes{3, 3, d.conv.in, d.conv.out});
    Tensor grad_bias = torch::stable::new_empty(x, Sizes{d.conv.out});
    const Conv3x3Filters problem{d.conv,
                                 x.const_data_ptr(),
                                 gradient.grad_y.const_data_ptr(),
                                 gradient.choice_or_null(d),
                                 grad_taps.mutable_data_ptr(),
                                 grad_bias.mutable_data_ptr()};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(conv3x3_filters_scratch)(problem, workers));
    DMAO_CPU_KERNEL(conv3x3_filters)(problem, {scratch, workers}, torch_parallel());
    return {grad_taps, grad_bias};
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("conv3x3", TORCH_BOX(&dmao::conv3x3));
    m.impl("conv3x3_backward_images", TORCH_BOX(&dmao::conv3x3_backward_images));
    m.impl("conv3x3_backward_filters", TORCH_BOX(&dmao::conv3x3_backward_filters));
}
