// dmao_cuda::component_ffn and its backward: checks, allocation. The live list stays on the device;
// kernels bring ids out of range back into it.
#include <string>
#include <tuple>

#include "component_ffn_launch.cuh"
#include "linear.cuh"

namespace dmao::cuda {
namespace {

constexpr const char* kOp = "component_ffn";

// The inputs that both directions have.
struct Inputs {
    TensorRows x, w1, w2;
    OptionalTensor live, seed;
    std::int64_t width;  // units of a component
    int components;
    double p;
    Activation activation;

    Inputs(const Tensor& x_, const Tensor& w1_, const Tensor& w2_, const OptionalTensor& live_,
           std::int64_t components_, double p, const OptionalTensor& seed_,
           const std::string& activation)
        : x(rows_beside(kOp, "x", x_, x_)),
          w1(rows_beside(kOp, "w1", w1_, x_)),
          w2(rows_beside(kOp, "w2", w2_, x_)),
          p(p),
          activation(parse_activation(kOp, activation)) {
        check(w1_.dim() == 2 && w1.width == x.width, kOp, ": w1 must be [hidden, ", x.width, "]");
        check(w2_.dim() == 2 && w2.width == w1.rows, kOp, ": w2 must be [out, ", w1.rows, "]");
        check(components_ > 0 ? w1.rows % components_ == 0 : components_ == 0 && w1.rows == 0, kOp,
              ": components must divide the ", w1.rows, " units, got ", components_);
        components = small_size(kOp, "components", components_);
        width = components == 0 ? 0 : w1.rows / components;
        if (live_.has_value()) {
            live = dense_beside(kOp, "live", live_, x_, ScalarType::Int, {live_->numel()});
        }
        check(p >= 0.0 && p < 1.0, kOp, ": p must be in [0, 1), got ", p);
        check(p == 0.0 || seed_.has_value(), kOp, ": seed is needed when p > 0");
        if (p > 0.0) seed = dense_beside(kOp, "seed", seed_, x_, ScalarType::Long, {1});
    }

    std::int64_t positions() const { return live.has_value() ? live->numel() * width : w1.rows; }

    template <class E>
    FfnLayer<E> layer() const {
        LiveList list = LiveList::all(small_size(kOp, "w1", w1.rows));
        if (live.has_value()) {
            small_size(kOp, "live", positions());
            list.everything = false;
            list.ids = pointer<std::int32_t>(live);
            list.capacity = width == 0 ? 0 : static_cast<int>(live->numel());
            list.things = components;
            list.width = Divisor(width == 0 ? 1 : static_cast<int>(width));
        }
        return {view_rows<E>(kOp, "x", x),
                view_rows<E>(kOp, "w1", w1),
                view_rows<E>(kOp, "w2", w2),
                list,
                activation,
                p,
                pointer<std::int64_t>(seed)};
    }
};

std::tuple<Tensor, Tensor> component_ffn(const Tensor& x, const Tensor& w1,
                                         const OptionalTensor& b1, const Tensor& w2,
                                         const OptionalTensor& b2, const OptionalTensor& live,
                                         std::int64_t components, double p,
                                         const OptionalTensor& seed, const Name& activation,
                                         bool keep) {
    const Inputs in(x, w1, w2, live, components, p, seed, activation);
    const OptionalTensor inner = dense_beside(kOp, "b1", b1, x, x.scalar_type(), {in.w1.rows});
    const OptionalTensor outer = dense_beside(kOp, "b2", b2, x, x.scalar_type(), {in.w2.rows});
    Tensor y = torch::stable::new_empty(x, leading_and(in.x.tensor, in.w2.rows));
    Tensor pre_activation =
        torch::stable::new_empty(x, Shape{keep ? in.x.rows : 0, in.positions()});
    with_elements(kOp, "x", x, [&]<class E>(E) {
        const FfnLayer<E> layer = in.layer<E>();
        run_on(x, [&](LinearRun& run) {
            component_ffn_forward<E>(run, layer, pointer<E>(inner), pointer<E>(outer),
                                     {target<E>(y, true), target<E>(pre_activation, keep)});
        });
    });
    return {y, pre_activation};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> component_ffn_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& w1, const Tensor& w2,
    const OptionalTensor& live, const Tensor& pre_activation, std::int64_t components, double p,
    const OptionalTensor& seed, const Name& activation, bool need_x, bool need_w1, bool need_b1,
    bool need_w2, bool need_b2) {
    const Inputs in(x, w1, w2, live, components, p, seed, activation);
    const TensorRows grad = rows_beside(kOp, "grad_y", grad_y, x);
    check(grad.rows == in.x.rows && grad.width == in.w2.rows, kOp, ": grad_y must be [", in.x.rows,
          ", ", in.w2.rows, "]");
    const OptionalTensor kept = dense_beside(kOp, "pre_activation", pre_activation, x,
                                             x.scalar_type(), {in.x.rows, in.positions()});
    const bool partly = in.live.has_value();
    Tensor grad_x = gradient(x, need_x, leading_and(in.x.tensor, in.x.width));
    Tensor grad_w1 = gradient(w1, need_w1, {in.w1.rows, in.w1.width}, partly);
    Tensor grad_b1 = gradient(w1, need_b1, {in.w1.rows}, partly);
    Tensor grad_w2 = gradient(w2, need_w2, {in.w2.rows, in.w2.width}, partly);
    Tensor grad_b2 = gradient(w2, need_b2, {in.w2.rows});
    with_elements(kOp, "x", x, [&]<class E>(E) {
        const FfnLayer<E> layer = in.layer<E>();
        const Rows<E> grad_rows = view_rows<E>(kOp, "grad_y", grad);
        run_on(x, [&](LinearRun& run) {
            component_ffn_backward<E>(run, layer, grad_rows, pointer<E>(kept),
                                      {target<E>(grad_x, need_x), target<E>(grad_w1, need_w1),
                                       target<E>(grad_b1, need_b1), target<E>(grad_w2, need_w2),
                                       target<E>(grad_b2, need_b2)});
        });
    });
    return {grad_x, grad_w1, grad_b1, grad_w2, grad_b2};
}

}  // namespace
}  // namespace dmao::cuda

DMAO_CUDA_LIBRARY(m) {
    m.impl("component_ffn", TORCH_BOX(&dmao::cuda::component_ffn));
    m.impl("component_ffn_backward", TORCH_BOX(&dmao::cuda::component_ffn_backward));
}
