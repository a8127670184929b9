// dmao::component_ffn and its backward on the CPU key: checks, live units, allocation, scratch.
#include "dmao/component_ffn.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"
#include "linear.h"
#include "live.h"
#include "scratch.h"

namespace dmao {
namespace {

constexpr const char* kOp = "component_ffn";

// Contiguous copies of the inputs, where needed, and the problem that points into them.
struct Inputs {
    Tensor x, w1, w2;
    std::optional<Tensor> b1;
    std::vector<std::int32_t> units;
    std::int64_t kept_width = 0;  // of what the backward pass needs; live units lie close together
    ComponentFfn ffn{};

    Inputs(const Tensor& x_, const Tensor& w1_, const std::optional<Tensor>& b1_, const Tensor& w2_,
           const std::optional<Tensor>& live, std::int64_t components, double p,
           const std::optional<Tensor>& seed, const std::string& activation)
        : x(torch::stable::contiguous(x_)),
          w1(torch::stable::contiguous(w1_)),
          w2(torch::stable::contiguous(w2_)) {
        check(x.dim() >= 1, kOp, ": x must have at least one dimension");
        check(w1.dim() == 2 && w2.dim() == 2, kOp, ": w1 and w2 must have two dimensions");
        ffn.dtype = float_dtype(kOp, "x", x);
        ffn.in_width = x.size(x.dim() - 1);
        ffn.stored_hidden = w1.size(0);
        ffn.out_width = w2.size(0);
        ffn.tokens = 1;
        for (std::int64_t i = 0; i + 1 < x.dim(); ++i) ffn.tokens *= x.size(i);
        check(ffn.tokens <= std::numeric_limits<std::uint32_t>::max(), kOp,
              ": too many tokens: ", ffn.tokens);
        check_matrix("w1", w1, ffn.stored_hidden, ffn.in_width);
        check_matrix("w2", w2, ffn.out_width, ffn.stored_hidden);
        if (b1_.has_value()) b1 = vector("b1", *b1_, ffn.stored_hidden);
        units = live_units(kOp, live, components, ffn.stored_hidden, "units");
        kept_width = listed_units(live, components, ffn.stored_hidden);
        ffn.hidden = static_cast<std::int64_t>(units.size());
        ffn.units = units.data();
        ffn.activation = parse_activation(kOp, activation);
        check(p >= 0.0 && p < 1.0, kOp, ": p must be in [0, 1), got ", p);
        ffn.p = p;
        if (p > 0.0) {
            check(seed.has_value(), kOp, ": seed is needed when p > 0");
            check_tensor(kOp, "seed", *seed, ScalarType::Long);
            check(seed->numel() == 1, kOp, ": seed must have one element, got ", seed->numel());
            ffn.seed = static_cast<std::uint64_t>(*seed->const_data_ptr<std::int64_t>());
        }
        ffn.x = x.const_data_ptr();
        ffn.w1 = w1.const_data_ptr();
        ffn.b1 = b1.has_value() ? b1->const_data_ptr() : nullptr;
        ffn.w2 = w2.const_data_ptr();
    }

    void check_matrix(const char* name, const Tensor& tensor, std::int64_t rows,
                      std::int64_t columns) const {
        check_tensor(kOp, name, tensor, x.scalar_type());
        check(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, kOp, ": ",
              name, " must be [", rows, ", ", columns, "]");
    }

    Tensor vector(const char* name, const Tensor& tensor, std::int64_t size) const {
        Tensor result = torch::stable::contiguous(tensor);
        check_tensor(kOp, name, result, x.scalar_type());
        check(result.dim() == 1 && result.size(0) == size, kOp, ": ", name, " must be [", size,
              "]");
        return result;
    }

    // A gradient, empty unless it is wanted. Of one that has units the kernel writes those that
    // live.
    Tensor gradient(bool wanted, const std::vector<std::int64_t>& sizes, bool has_units) const {
        if (!wanted) return torch::stable::new_empty(x, std::vector<std::int64_t>{0});
        return has_units && ffn.hidden != ffn.stored_hidden ? torch::stable::new_zeros(x, sizes)
                                                            : torch::stable::new_empty(x, sizes);
    }
};

std::tuple<Tensor, Tensor> component_ffn(const Tensor& x, const Tensor& w1,
                                         const std::optional<Tensor>& b1, const Tensor& w2,
                                         const std::optional<Tensor>& b2,
                                         const std::optional<Tensor>& live, std::int64_t components,
                                         double p, const std::optional<Tensor>& seed,
                                         const Name& activation, bool keep) {
    const Inputs in(x, w1, b1, w2, live, components, p, seed, activation);
    std::optional<Tensor> bias2;
    if (b2.has_value()) bias2 = in.vector("b2", *b2, in.ffn.out_width);
    Tensor y = torch::stable::new_empty(in.x, leading_and(in.x, in.ffn.out_width));
    Tensor pre_activation = torch::stable::new_empty(
        in.x, std::vector<std::int64_t>{keep ? in.ffn.tokens : 0, in.kept_width});
    if (y.numel() == 0 && pre_activation.numel() == 0) return {y, pre_activation};

    const ComponentFfnForward problem{in.ffn, bias2.has_value() ? bias2->const_data_ptr() : nullptr,
                                      y.mutable_data_ptr(),
                                      keep ? pre_activation.mutable_data_ptr() : nullptr};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(component_ffn_forward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(component_ffn_forward)
    (problem, {scratch, workers}, torch_parallel());
    return {y, pre_activation};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> component_ffn_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& w1, const Tensor& w2,
    const std::optional<Tensor>& live, const Tensor& pre_activation, std::int64_t components,
    double p, const std::optional<Tensor>& seed, const Name& activation, bool need_x, bool need_w1,
    bool need_b1, bool need_w2, bool need_b2) {
    const Inputs in(x, w1, std::nullopt, w2, live, components, p, seed, activation);
    const ComponentFfn& f = in.ffn;
    const Tensor grad = torch::stable::contiguous(grad_y);
    check_tensor(kOp, "grad_y", grad, in.x.scalar_type());
    check(grad.numel() == f.tokens * f.out_width, kOp, ": grad_y must have ",
          f.tokens * f.out_width, " elements, got ", grad.numel());
    check_tensor(kOp, "pre_activation", pre_activation, in.x.scalar_type());
    check(pre_activation.dim() == 2 && pre_activation.size(0) == f.tokens &&
              pre_activation.size(1) == in.kept_width,
          kOp,
          ": the backward pass needs the forward pass to keep its pre-activations (keep=True)");

    Tensor grad_x = in.gradient(need_x, leading_and(in.x, f.in_width), false);
    Tensor grad_w1 = in.gradient(need_w1, {f.stored_hidden, f.in_width}, true);
    Tensor grad_b1 = in.gradient(need_b1, {f.stored_hidden}, true);
    Tensor grad_w2 = in.gradient(need_w2, {f.out_width, f.stored_hidden}, true);
    Tensor grad_b2 = in.gradient(need_b2, {f.out_width}, false);
    const ComponentFfnBackward problem{f,
                                       grad.const_data_ptr(),
                                       pre_activation.const_data_ptr(),
                                       need_x ? grad_x.mutable_data_ptr() : nullptr,
                                       need_w1 ? grad_w1.mutable_data_ptr() : nullptr,
                                       need_b1 ? grad_b1.mutable_data_ptr() : nullptr,
                                       need_w2 ? grad_w2.mutable_data_ptr() : nullptr,
                                       need_b2 ? grad_b2.mutable_data_ptr() : nullptr};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(component_ffn_backward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(component_ffn_backward)
    (problem, {scratch, workers}, torch_parallel());
    return {grad_x, grad_w1, grad_b1, grad_w2, grad_b2};
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("component_ffn", TORCH_BOX(&dmao::component_ffn));
    m.impl("component_ffn_backward", TORCH_BOX(&dmao::component_ffn_backward));
}
