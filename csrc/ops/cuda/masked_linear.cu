// dmao_cuda::masked_linear and its backward: checks, allocation. The values of a mask stay on the
// device; kernels bring those out of range back into it.
#include <string>
#include <tuple>

#include "linear.cuh"
#include "masked_linear_launch.cuh"

namespace dmao::cuda {
namespace {

constexpr const char* kOp = "masked_linear";

// The inputs that both directions have.
struct Inputs {
    TensorRows x, w;
    OptionalTensor row_offsets, column_ids, column_offsets, row_ids;
    int block;
    Activation activation;

    Inputs(const Tensor& x_, const Tensor& w_, const OptionalTensor& row_offsets_,
           const OptionalTensor& column_ids_, const OptionalTensor& column_offsets_,
           const OptionalTensor& row_ids_, std::int64_t block_, const std::string& activation_)
        : x(rows_beside(kOp, "x", x_, x_)),
          w(rows_beside(kOp, "w", w_, x_)),
          block(static_cast<int>(block_)),
          activation(parse_linear_activation(kOp, activation_)) {
        check(w_.dim() == 2 && w.width == x.width, kOp, ": w must be [out, ", x.width, "]");
        check(activation != Activation::glu || w.rows % 2 == 0, kOp,
              ": glu needs an even number of rows of w, got ", w.rows);
        const bool masked = row_offsets_.has_value();
        check(column_ids_.has_value() == masked && column_offsets_.has_value() == masked &&
                  row_ids_.has_value() == masked && (block_ != 0) == masked,
              kOp, ": a mask needs all of its tensors");
        if (!masked) return;
        check(block_ >= 16 && block_ <= 128 && block_ % 16 == 0, kOp,
              ": block must be a multiple of 16 in [16, 128], got ", block_);
        const std::int64_t count = column_ids_->numel();
        row_offsets = list("row_offsets", row_offsets_, (w.rows + block - 1) / block + 1);
        column_ids = list("column_ids", column_ids_, count);
        column_offsets = list("column_offsets", column_offsets_, (x.width + block - 1) / block + 1);
        row_ids = list("row_ids", row_ids_, count);
    }

    std::int64_t result_width() const {
        return activation == Activation::glu ? w.rows / 2 : w.rows;
    }

    template <class E>
    MaskedLinearLayer<E> layer() const {
        using Id = std::int32_t;
        return {view_rows<E>(kOp, "x", x),
                view_rows<E>(kOp, "w", w),
                block,
                block == 0 ? 0 : small_size(kOp, "mask", column_ids->numel()),
                {pointer<Id>(row_offsets), pointer<Id>(column_ids)},
                {pointer<Id>(column_offsets), pointer<Id>(row_ids)},
                activation};
    }

  private:
    OptionalTensor list(const char* name, const OptionalTensor& given, std::int64_t size) const {
        return dense_beside(kOp, name, given, x.tensor, ScalarType::Int, {size});
    }
};

std::tuple<Tensor, Tensor> masked_linear(const Tensor& x, const Tensor& w, const OptionalTensor& b,
                                         const OptionalTensor& row_offsets,
                                         const OptionalTensor& column_ids,
                                         const OptionalTensor& column_offsets,
                                         const OptionalTensor& row_ids, std::int64_t block,
                                         const Name& activation, bool keep) {
    const Inputs in(x, w, row_offsets, column_ids, column_offsets, row_ids, block, activation);
    const OptionalTensor bias = dense_beside(kOp, "b", b, x, x.scalar_type(), {in.w.rows});
    Tensor y = torch::stable::new_empty(x, leading_and(in.x.tensor, in.result_width()));
    Tensor pre_activation = torch::stable::new_empty(x, Shape{keep ? in.x.rows : 0, in.w.rows});
    with_elements(kOp, "x", x, [&]<class E>(E) {
        const MaskedLinearLayer<E> layer = in.layer<E>();
        run_on(x, [&](LinearRun& run) {
            masked_linear_forward(run, layer, pointer<E>(bias), target<E>(y, true),
                                  target<E>(pre_activation, keep));
        });
    });
    return {y, pre_activation};
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& w, const OptionalTensor& row_offsets,
    const OptionalTensor& column_ids, const OptionalTensor& column_offsets,
    const OptionalTensor& row_ids, std::int64_t block, const Tensor& pre_activation,
    const Name& activation, bool need_x, bool need_w, bool need_b) {
    const Inputs in(x, w, row_offsets, column_ids, column_offsets, row_ids, block, activation);
    const TensorRows grad = rows_beside(kOp, "grad_y", grad_y, x);
    check(grad.rows == in.x.rows && grad.width == in.result_width(), kOp, ": grad_y must be [",
          in.x.rows, ", ", in.result_width(), "]");
    OptionalTensor kept;
    if (in.activation != Activation::none) {
        kept = dense_beside(kOp, "pre_activation", pre_activation, x, x.scalar_type(),
                            {in.x.rows, in.w.rows});
    }
    Tensor grad_x = gradient(x, need_x, leading_and(in.x.tensor, in.x.width));
    Tensor grad_w = gradient(w, need_w, {in.w.rows, in.w.width}, in.block != 0);
    Tensor grad_b = gradient(w, need_b, {in.w.rows});
    with_elements(kOp, "x", x, [&]<class E>(E) {
        const MaskedLinearLayer<E> layer = in.layer<E>();
        const Rows<E> grad_rows = view_rows<E>(kOp, "grad_y", grad);
        run_on(x, [&](LinearRun& run) {
            masked_linear_backward(run, layer, grad_rows, pointer<E>(kept),
                                   target<E>(grad_x, need_x), target<E>(grad_w, need_w),
                                   target<E>(grad_b, need_b));
        });
    });
    return {grad_x, grad_w, grad_b};
}

}  // namespace
}  // namespace dmao::cuda

DMAO_CUDA_LIBRARY(m) {
    m.impl("masked_linear", TORCH_BOX(&dmao::cuda::masked_linear));
    m.impl("masked_linear_backward", TORCH_BOX(&dmao::cuda::masked_linear_backward));
}
