// dmao::masked_linear and its backward on the CPU key: checks, live pieces, allocation, scratch.
#include "dmao/masked_linear.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"
#include "linear.h"
#include "live_pieces.h"
#include "scratch.h"

namespace dmao {
namespace {

constexpr const char* kOp = "masked_linear";

Lines read_lines(const char* offsets_name, const Tensor& offsets, const char* ids_name,
                 const Tensor& ids, std::int64_t lines, std::int64_t others) {
    check_tensor(kOp, offsets_name, offsets, ScalarType::Int);
    check_tensor(kOp, ids_name, ids, ScalarType::Int);
    check(offsets.dim() == 1 && offsets.size(0) == lines + 1, kOp, ": ", offsets_name,
          " must have ", lines + 1, " elements, got ", offsets.numel());
    const std::int32_t *offset = offsets.const_data_ptr<std::int32_t>(),
                       *id = ids.const_data_ptr<std::int32_t>();
    // Whatever stands behind the last line fills the ids up and is not read.
    check(offset[0] == 0 && offset[lines] <= ids.numel(), kOp, ": ", offsets_name,
          " must begin with 0 and end within the ", ids.numel(), " ids, got ", offset[0], " and ",
          offset[lines]);
    for (std::int64_t line = 0; line < lines; ++line) {
        check(offset[line] <= offset[line + 1] && offset[line + 1] <= ids.numel(), kOp, ": ",
              offsets_name, " must not decrease");
        for (std::int32_t i = offset[line]; i < offset[line + 1]; ++i) {
            check(id[i] >= 0 && id[i] < others, kOp, ": ", ids_name, "[", i, "] must be in [0, ",
                  others, "), got ", id[i]);
            check(i == offset[line] || id[i] > id[i - 1], kOp, ": ", ids_name,
                  " must ascend within a line, but ", ids_name, "[", i, "] = ", id[i], " follows ",
                  id[i - 1]);
        }
    }
    return {offset, id};
}

// The rows of a tensor on the CPU.
TensorRows rows_of(const char* name, const Tensor& given) {
    check(given.is_cpu(), kOp, ": ", name, " must be a CPU tensor");
    return TensorRows(kOp, name, given);
}

using OptionalTensor = std::optional<Tensor>;

// The inputs that both directions have, and the problem that points into them.
struct Inputs {
    TensorRows x, w;
    std::optional<Lines> rows, columns;
    MaskedLinear linear{};

    Inputs(const Tensor& x_, const Tensor& w_, const OptionalTensor& row_offsets,
           const OptionalTensor& column_ids, const OptionalTensor& column_offsets,
           const OptionalTensor& row_ids, std::int64_t block, const std::string& activation)
        : x(rows_of("x", x_)), w(rows_of("w", w_)) {
        const Tensor &x = this->x.tensor, &w = this->w.tensor;
        check(w.dim() == 2, kOp, ": w must have two dimensions, got ", w.dim());
        linear.dtype = x.scalar_type() == ScalarType::Float ? DType::float32 : DType::bfloat16;
        check(linear.dtype == DType::float32 || x.scalar_type() == ScalarType::BFloat16, kOp,
              ": x must be float32 or bfloat16, got ",
              torch::headeronly::toString(x.scalar_type()));
        check_dtype("w", w);
        linear.tokens = this->x.rows;
        linear.in_width = this->x.width;
        linear.out_width = w.size(0);
        check(w.size(1) == linear.in_width, kOp, ": w must be [", linear.out_width, ", ",
              linear.in_width, "], got [", w.size(0), ", ", w.size(1), "]");
        const std::int64_t most = std::numeric_limits<std::int32_t>::max() / 2;
        check(linear.in_width <= most && linear.out_width <= most, kOp, ": w is too large");
        linear.activation = parse_linear_activation(kOp, activation);
        check(linear.activation != Activation::glu || linear.out_width % 2 == 0, kOp,
              ": glu needs an even number of rows of w, got ", linear.out_width);
        linear.x = x.const_data_ptr();
        linear.x_stride = this->x.stride;
        linear.w = w.const_data_ptr();
        linear.w_stride = this->w.stride;
        read_mask(row_offsets, column_ids, column_offsets, row_ids, block);
    }

    void check_dtype(const char* name, const Tensor& tensor) const {
        check(tensor.scalar_type() == x.tensor.scalar_type(), kOp, ": ", name,
              " must have x's dtype");
    }

    // Columns of y.
    std::int64_t result_width() const {
        return linear.activation == Activation::glu ? linear.out_width / 2 : linear.out_width;
    }

  private:
    void read_mask(const OptionalTensor& row_offsets, const OptionalTensor& column_ids,
                   const OptionalTensor& column_offsets, const OptionalTensor& row_ids,
                   std::int64_t block) {
        const bool masked = row_offsets.has_value();
        check(column_ids.has_value() == masked && column_offsets.has_value() == masked &&
                  row_ids.has_value() == masked,
              kOp, ": a mask needs all of its tensors");
        linear.block = masked ? block : kDenseBlock;
        if (!masked) return;
        check(block >= 16 && block <= 128 && block % 16 == 0, kOp,
              ": block must be a multiple of 16 in [16, 128], got ", block);
        const std::int64_t grid_rows = (linear.out_width + block - 1) / block;
        const std::int64_t grid_columns = (linear.in_width + block - 1) / block;
        rows = read_lines("row_offsets", *row_offsets, "column_ids", *column_ids, grid_rows,
                          grid_columns);
        columns = read_lines("column_offsets", *column_offsets, "row_ids", *row_ids, grid_columns,
                             grid_rows);
    }
};

std::tuple<Tensor, Tensor> masked_linear(const Tensor& x, const Tensor& w, const OptionalTensor& b,
                                         const OptionalTensor& row_offsets,
                                         const OptionalTensor& column_ids,
                                         const OptionalTensor& column_offsets,
                                         const OptionalTensor& row_ids, std::int64_t block,
                                         const Name& activation, bool keep) {
    const Inputs in(x, w, row_offsets, column_ids, column_offsets, row_ids, block, activation);
    const MaskedLinear& f = in.linear;
    OptionalTensor bias;
    if (b.has_value()) {
        bias = torch::stable::contiguous(*b);
        check_tensor(kOp, "b", *bias, x.scalar_type());
        check(bias->dim() == 1 && bias->size(0) == f.out_width, kOp, ": b must be [", f.out_width,
              "]");
    }
    Tensor y = torch::stable::new_empty(x, leading_and(in.x.tensor, in.result_width()));
    Tensor pre_activation =
        torch::stable::new_empty(x, std::vector<std::int64_t>{keep ? f.tokens : 0, f.out_width});
    const Cut cut = cut_for_y(f, in.result_width(), in.rows);
    const MaskedLinearForward problem{
        f, cut.view(), bias.has_value() ? bias->const_data_ptr() : nullptr, y.mutable_data_ptr(),
        keep ? pre_activation.mutable_data_ptr() : nullptr};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(masked_linear_forward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(masked_linear_forward)(problem, {scratch, workers}, torch_parallel());
    return {y, pre_activation};
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& w, const OptionalTensor& row_offsets,
    const OptionalTensor& column_ids, const OptionalTensor& column_offsets,
    const OptionalTensor& row_ids, std::int64_t block, const Tensor& pre_activation,
    const Name& activation, bool need_x, bool need_w, bool need_b) {
    const Inputs in(x, w, row_offsets, column_ids, column_offsets, row_ids, block, activation);
    const MaskedLinear& f = in.linear;
    const TensorRows grad = rows_of("grad_y", grad_y);
    in.check_dtype("grad_y", grad.tensor);
    check(grad.rows == f.tokens && grad.width == in.result_width(), kOp, ": grad_y must be [",
          f.tokens, ", ", in.result_width(), "]");
    if (f.activation != Activation::none) {
        check_tensor(kOp, "pre_activation", pre_activation, x.scalar_type());
        check(pre_activation.dim() == 2 && pre_activation.size(0) == f.tokens &&
                  pre_activation.size(1) == f.out_width,
              kOp,
              ": the backward pass needs the forward pass to keep its pre-activations (keep=True)");
    }
    Tensor grad_x = torch::stable::new_empty(
        x, need_x ? leading_and(in.x.tensor, f.in_width) : std::vector<std::int64_t>{0});
    Tensor grad_w =
        torch::stable::new_empty(w, need_w ? std::vector<std::int64_t>{f.out_width, f.in_width}
                                           : std::vector<std::int64_t>{0});
    Tensor grad_b =
        torch::stable::new_empty(w, std::vector<std::int64_t>{need_b ? f.out_width : 0});
    const Cut for_grad_x = cut_for_grad_x(f, in.columns);
    const Cut for_grad_w = cut_for_grad_w(f, in.rows);
    const MaskedLinearBackward problem{f,
                                       for_grad_x.view(),
                                       for_grad_w.view(),
                                       grad.tensor.const_data_ptr(),
                                       grad.stride,
                                       pre_activation.const_data_ptr(),
                                       need_x ? grad_x.mutable_data_ptr() : nullptr,
                                       need_w ? grad_w.mutable_data_ptr() : nullptr,
                                       need_b ? grad_b.mutable_data_ptr() : nullptr};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(masked_linear_backward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(masked_linear_backward)(problem, {scratch, workers}, torch_parallel());
    return {grad_x, grad_w, grad_b};
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("masked_linear", TORCH_BOX(&dmao::masked_linear));
    m.impl("masked_linear_backward", TORCH_BOX(&dmao::masked_linear_backward));
}
