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
    c.pooled = coin();
    c.time = c.pooled ? one_of({1, 2, 3}) : 1;
    c.frequency = c.pooled ? one_of({1, 2, 3}) : 1;
    const std::int64_t rows = c.images * (c.height / c.time),
                       results = rows * (c.width / c.frequency) * c.out,
                       places = c.images * c.height * c.width, filters = 9 * c.in * c.out;
    const auto x = tensor(places * c.in, dtype), grad_x = tensor(places * c.in, dtype),
               taps = tensor(filters, dtype), bias = tensor(c.out, dtype),
               y = tensor(results, dtype), grad_taps = tensor(filters, dtype),
               grad_bias = tensor(c.out, dtype);
    const std::unique_ptr<std::uint8_t[]> choice(new std::uint8_t[results]);
    const std::unique_ptr<bool[]> valid(new bool[rows]);
    for (std::int64_t i = 0; i < rows; ++i) valid[i] = coin();
    c.valid = coin() ? valid.get() : nullptr;
    std::uint8_t* chosen = c.pooled ? choice.get() : nullptr;
    const auto run = [&](const auto& problem, auto* scratch_of, auto* kernel) {
        const Scratch scratch(scratch_of(problem, workers));
        kernel(problem, {scratch.get(), workers}, parallel);
    };
    run(Conv3x3Forward{c, x.get(), taps.get(), coin() ? bias.get() : nullptr, y.get(), chosen},
        kernels::conv3x3_forward_scratch, kernels::conv3x3_forward);
    record(y.get(), results, dtype);
    // Which of two nearly equal pixels is chosen depends on the instruction set.
    for (std::int64_t i = 0; c.pooled && i < results; ++i) {
        choice[i] = static_cast<std::uint8_t>(below(c.time * c.frequency + 1));
    }
    run(Conv3x3Images{c, y.get(), chosen, taps.get(), grad_x.get()},
        kernels::conv3x3_images_scratch, kernels::conv3x3_images);
    record(grad_x.get(), places * c.in, dtype);
    run(Conv3x3Filters{c, x.get(), y.get(), chosen, grad_taps.get(), grad_bias.get()},
        kernels::conv3x3_filters_scratch, kernels::conv3x3_filters);
    record(grad_taps.get(), filters, dtype);
    record(grad_bias.get(), c.out, dtype);
}

}  // namespace dmao::fuzzing
