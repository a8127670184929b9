#include "dmao/dropout_add.h"

#include "fuzz.h"

namespace dmao::fuzzing {

void fuzz(const ParallelFor& parallel, std::int64_t) {
    DropoutAdd step{};
    step.rows = one_of({1, 2, 7, 33, 130});
    step.width = one_of({1, 3, 8, 17, 128, 129, 384});
    step.x_dtype = some_dtype();
    step.y_dtype = coin() ? DType::bfloat16 : step.x_dtype;
    step.p = coin() ? 0.0 : 0.3;
    step.scale = 0.5;
    step.seed = random_bits();
    const std::int64_t count = step.rows * step.width;
    const auto x = tensor(count, step.x_dtype), y = tensor(count, step.y_dtype),
               sum = tensor(count, step.x_dtype), norm = tensor(count, step.x_dtype),
               grad_sum = tensor(count, step.x_dtype), grad_norm = tensor(count, step.x_dtype),
               grad_x = tensor(count, step.x_dtype), grad_y = tensor(count, step.y_dtype);
    const auto weight = floats(step.width), bias = floats(step.width),
               statistics = floats(2 * step.rows), grad_weight = floats(step.width),
               grad_bias = floats(step.width);
    {
        const Scratch scratch(kernels::dropout_add_scratch(step));
        kernels::dropout_add({step, coin() ? x.get() : nullptr, y.get(), sum.get()}, scratch.get(),
                             parallel);
        record(sum.get(), count, step.x_dtype);
        kernels::dropout_add_norm_forward({step, x.get(), y.get(), weight.get(), bias.get(), 1e-5,
                                           sum.get(), norm.get(), statistics.get()},
                                          scratch.get(), parallel);
        record(norm.get(), count, step.x_dtype);
    }
    const Scratch scratch(kernels::dropout_add_norm_backward_scratch(step));
    kernels::dropout_add_norm_backward(
        {step, coin() ? grad_sum.get() : nullptr, grad_norm.get(), sum.get(), weight.get(),
         statistics.get(), grad_x.get(), coin() ? grad_y.get() : nullptr, grad_weight.get(),
         grad_bias.get()},
        scratch.get(), parallel);
    record(grad_x.get(), count, step.x_dtype);
    record(grad_y.get(), count, step.y_dtype);
    record(grad_weight.get(), step.width, DType::float32);
    record(grad_bias.get(), step.width, DType::float32);
}

}  // namespace dmao::fuzzing
