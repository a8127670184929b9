// dmao::dropout_add, dmao::dropout_add_layer_norm and its backward on the CPU key: checks,
// allocation, scratch.
#include "dmao/dropout_add.h"

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"
#include "scratch.h"

namespace dmao {
namespace {

using OptionalTensor = std::optional<Tensor>;

const void* pointer(const OptionalTensor& tensor) {
    return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

OptionalTensor contiguous(const OptionalTensor& tensor) {
    if (!tensor.has_value()) return std::nullopt;
    return torch::stable::contiguous(*tensor);
}

bool same_shape(const Tensor& a, const Tensor& b) {
    if (a.dim() != b.dim()) return false;
    for (std::int64_t i = 0; i < a.dim(); ++i) {
        if (a.size(i) != b.size(i)) return false;
    }
    return true;
}

std::vector<std::int64_t> sizes(const Tensor& tensor) {
    std::vector<std::int64_t> found;
    for (std::int64_t i = 0; i < tensor.dim(); ++i) found.push_back(tensor.size(i));
    return found;
}

// The residual step over the rows of `tensor`, which has the dtype of the sum.
DropoutAdd read_step(const char* op, const Tensor& tensor, DType y_dtype, double p,
                     const OptionalTensor& seed, double scale) {
    DropoutAdd step{};
    step.x_dtype = float_dtype(op, "x", tensor);
    step.y_dtype = y_dtype;
    check(y_dtype == step.x_dtype || y_dtype == DType::bfloat16, op,
          ": y must have x's dtype or be bfloat16");
    check(tensor.dim() >= 1, op, ": x must be [..., d]");
    step.rows = 1;
    for (std::int64_t i = 0; i + 1 < tensor.dim(); ++i) step.rows *= tensor.size(i);
    step.width = tensor.size(tensor.dim() - 1);
    check(step.rows <= std::numeric_limits<std::uint32_t>::max(), op,
          ": too many rows: ", step.rows);
    check(step.width <= std::numeric_limits<std::uint32_t>::max(), op,
          ": rows are too wide: ", step.width);
    check(p >= 0.0 && p < 1.0, op, ": p must be in [0, 1), got ", p);
    step.p = p;
    step.scale = scale;
    if (p == 0.0) return step;
    check(seed.has_value(), op, ": seed is needed when p > 0");
    check_tensor(op, "seed", *seed, ScalarType::Long);
    check(seed->numel() == 1, op, ": seed must have one element, got ", seed->numel());
    step.seed = static_cast<std::uint64_t>(*seed->const_data_ptr<std::int64_t>());
    return step;
}

// Contiguous y, and x where there is one, of a step; the sum has the shape and dtype of rows().
struct Inputs {
    OptionalTensor x;
    Tensor y;
    DropoutAdd step;

    Inputs(const char* op, const OptionalTensor& x_, const Tensor& y_, double p,
           const OptionalTensor& seed, double scale)
        : x(contiguous(x_)),
          y(torch::stable::contiguous(y_)),
          step(read_step(op, rows(), float_dtype(op, "y", y), p, seed, scale)) {
        check(same_shape(y, rows()), op, ": y must have x's shape");
    }

    const Tensor& rows() const { return x.has_value() ? *x : y; }
};

Tensor dropout_add(const OptionalTensor& x, const Tensor& y, double p, const OptionalTensor& seed,
                   double scale) {
    const Inputs in("dropout_add", x, y, p, seed, scale);
    Tensor sum = torch::stable::new_empty(in.rows(), sizes(y));
    if (sum.numel() == 0) return sum;
    const DropoutAddForward problem{in.step, pointer(in.x), in.y.const_data_ptr(),
                                    sum.mutable_data_ptr()};
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(dropout_add_scratch)(in.step));
    DMAO_CPU_KERNEL(dropout_add)(problem, scratch, torch_parallel());
    return sum;
}

constexpr const char* kNorm = "dropout_add_layer_norm";

const float* read_vector(const char* name, const Tensor& tensor, std::int64_t width) {
    check_tensor(kNorm, name, tensor, ScalarType::Float);
    check(tensor.dim() == 1 && tensor.size(0) == width, kNorm, ": ", name, " must be [", width,
          "]");
    return tensor.const_data_ptr<float>();
}

std::tuple<Tensor, Tensor, Tensor> dropout_add_layer_norm(const Tensor& x, const Tensor& y,
                                                          const Tensor& weight, const Tensor& bias,
                                                          double p, const OptionalTensor& seed,
                                                          double scale, double eps) {
    const Inputs in(kNorm, x, y, p, seed, scale);
    const DropoutAdd& step = in.step;
    const Tensor weights = torch::stable::contiguous(weight),
                 biases = torch::stable::contiguous(bias);
    DropoutAddNormForward problem{step,
                                  pointer(in.x),
                                  in.y.const_data_ptr(),
                                  read_vector("weight", weights, step.width),
                                  read_vector("bias", biases, step.width),
                                  eps,
                                  nullptr,
                                  nullptr,
                                  nullptr};
    Tensor sum = torch::stable::new_empty(in.rows(), sizes(x));
    Tensor norm = torch::stable::new_empty(in.rows(), sizes(x));
    Tensor statistics = torch::stable::new_empty(in.rows(), std::vector<std::int64_t>{step.rows, 2},
                                                 ScalarType::Float);
    if (norm.numel() == 0) return {sum, norm, statistics};
    problem.sum = sum.mutable_data_ptr();
    problem.norm = norm.mutable_data_ptr();
    problem.statistics = statistics.mutable_data_ptr<float>();
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(dropout_add_scratch)(step));
    DMAO_CPU_KERNEL(dropout_add_norm_forward)(problem, scratch, torch_parallel());
    return {sum, norm, statistics};
}

void check_gradient(const char* name, const Tensor& gradient, const Tensor& sum) {
    check_tensor(kNorm, name, gradient, sum.scalar_type());
    check(same_shape(gradient, sum), kNorm, ": ", name, " must have the shape of the sum");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_backward(
    const OptionalTensor& grad_sum, const Tensor& grad_norm, const Tensor& sum,
    const Tensor& weight, const Tensor& statistics, double p, const OptionalTensor& seed,
    double scale, bool need_y, ScalarType y_dtype) {
    const Tensor values = torch::stable::contiguous(sum);
    const Tensor grad = torch::stable::contiguous(grad_norm);
    const OptionalTensor direct = contiguous(grad_sum);
    const Tensor weights = torch::stable::contiguous(weight);
    check(y_dtype == ScalarType::Float || y_dtype == ScalarType::BFloat16, kNorm,
          ": y must be float32 or bfloat16");
    const DropoutAdd step =
        read_step(kNorm, values, y_dtype == ScalarType::Float ? DType::float32 : DType::bfloat16, p,
                  seed, scale);
    check_gradient("grad_norm", grad, values);
    if (direct.has_value()) check_gradient("grad_sum", *direct, values);
    check_tensor(kNorm, "statistics", statistics, ScalarType::Float);
    check(statistics.numel() == 2 * step.rows, kNorm, ": statistics must be [", step.rows, ", 2]");
    Tensor grad_x = torch::stable::new_empty(values, sizes(values));
    Tensor grad_y = torch::stable::new_empty(
        values, need_y ? sizes(values) : std::vector<std::int64_t>{0}, y_dtype);
    Tensor grad_weight = torch::stable::new_zeros(weights, sizes(weights));
    Tensor grad_bias = torch::stable::new_zeros(weights, sizes(weights));
    if (values.numel() == 0) return {grad_x, grad_y, grad_weight, grad_bias};
    const DropoutAddNormBackward problem{step,
                                         pointer(direct),
                                         grad.const_data_ptr(),
                                         values.const_data_ptr(),
                                         read_vector("weight", weights, step.width),
                                         statistics.const_data_ptr<float>(),
                                         grad_x.mutable_data_ptr(),
                                         need_y ? grad_y.mutable_data_ptr() : nullptr,
                                         grad_weight.mutable_data_ptr<float>(),
                                         grad_bias.mutable_data_ptr<float>()};
    float* scratch = thread_scratch(DMAO_CPU_KERNEL(dropout_add_norm_backward_scratch)(step));
    DMAO_CPU_KERNEL(dropout_add_norm_backward)(problem, scratch, torch_parallel());
    return {grad_x, grad_y, grad_weight, grad_bias};
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("dropout_add", TORCH_BOX(&dmao::dropout_add));
    m.impl("dropout_add_layer_norm", TORCH_BOX(&dmao::dropout_add_layer_norm));
    m.impl("dropout_add_layer_norm_backward", TORCH_BOX(&dmao::dropout_add_layer_norm_backward));
}
