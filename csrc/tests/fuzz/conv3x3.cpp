#include "dmao/conv3x3.h"

#include "fuzz.h"

namespace dmao::fuzzing {

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    Conv3x3 c{};
    const DType dtype = c.dtype = some_dtype();
    c.images = below(3);
    c.height = one_of({0, 1, 2, 7, 33});
    c.width = one_of({0, 1, 2, 9, 40});
    c.in = one_of({1, 3, 8, 17, 32});
    c.out = one_of({1, 3, 8, 17, 32});
    const std::int64_t places = c.images * c.height * c.width, filters = 9 * c.in * c.out;
    const auto x = tensor(places * c.in, dtype), taps = tensor(filters, dtype),
               bias = tensor(c.out, dtype), y = tensor(places * c.out, dtype),
               grad_taps = tensor(filters, dtype), grad_bias = tensor(c.out, dtype);
    c.x = x.get();
    const Conv3x3Forward forward{c, taps.get(), coin() ? bias.get() : nullptr, y.get()};
    {
        const Scratch scratch(kernels::conv3x3_forward_scratch(forward, workers));
        kernels::conv3x3_forward(forward, {scratch.get(), workers}, parallel);
    }
    record(y.get(), places * c.out, dtype);
    const Conv3x3Backward backward{c, y.get(), grad_taps.get(), grad_bias.get()};
    const Scratch scratch(kernels::conv3x3_backward_scratch(backward, workers));
    kernels::conv3x3_backward(backward, {scratch.get(), workers}, parallel);
    record(grad_taps.get(), filters, dtype);
    record(grad_bias.get(), c.out, dtype);
}

}  // namespace dmao::fuzzing
