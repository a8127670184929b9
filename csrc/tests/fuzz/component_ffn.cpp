#include "dmao/component_ffn.h"

#include <vector>

#include "fuzz.h"

namespace dmao::fuzzing {
namespace {

// No, some, all or the later half of the stored units.
std::vector<std::int32_t> choose_units(std::int64_t stored) {
    const std::int64_t mode = below(4);
    std::vector<std::int32_t> units;
    for (std::int64_t j = 0; j < stored; ++j) {
        if (mode == 0 || (mode == 1 && coin()) || (mode == 2 && j >= stored / 2)) {
            units.push_back(static_cast<std::int32_t>(j));
        }
    }
    units.shrink_to_fit();
    return units;
}

}  // namespace

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    const auto width = [] { return one_of({0, 1, 3, 8, 15, 16, 17, 33, 47, 64, 97, 193, 200}); };
    ComponentFfn f{};
    const DType dtype = f.dtype = some_dtype();
    f.activation = static_cast<Activation>(below(3));
    f.tokens = one_of({0, 1, 2, 5, 17, 64, 127, 130, 513, 700});
    f.in_width = width();
    f.out_width = width();
    f.stored_hidden = one_of({0, 1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 129, 200});
    const std::vector<std::int32_t> units = choose_units(f.stored_hidden);
    f.hidden = static_cast<std::int64_t>(units.size());
    f.units = units.data();
    f.p = coin() ? 0.0 : 0.3;
    f.seed = random_bits();
    const std::int64_t inputs = f.tokens * f.in_width, outputs = f.tokens * f.out_width;
    const std::int64_t size1 = f.stored_hidden * f.in_width, size2 = f.stored_hidden * f.out_width;
    const auto x = tensor(inputs, dtype), w1 = tensor(size1, dtype), w2 = tensor(size2, dtype),
               b1 = tensor(f.stored_hidden, dtype), b2 = tensor(f.out_width, dtype),
               y = tensor(outputs, dtype), kept = tensor(f.tokens * f.hidden, dtype),
               grad_y = tensor(outputs, dtype), grad_x = tensor(inputs, dtype),
               grad_w1 = tensor(size1, dtype), grad_w2 = tensor(size2, dtype),
               grad_b1 = tensor(f.stored_hidden, dtype), grad_b2 = tensor(f.out_width, dtype);
    f.x = x.get();
    f.w1 = w1.get();
    f.b1 = coin() ? b1.get() : nullptr;
    f.w2 = w2.get();

    for (void* pre_activation : {static_cast<void*>(nullptr), static_cast<void*>(kept.get())}) {
        const ComponentFfnForward problem{f, coin() ? b2.get() : nullptr, y.get(), pre_activation};
        const Scratch scratch(kernels::component_ffn_forward_scratch(problem, workers));
        kernels::component_ffn_forward(problem, {scratch.get(), workers}, parallel);
        record(y.get(), outputs, dtype);
    }
    const ComponentFfnBackward problem{f,
                                       grad_y.get(),
                                       kept.get(),
                                       grad_x.get(),
                                       grad_w1.get(),
                                       coin() ? grad_b1.get() : nullptr,
                                       grad_w2.get(),
                                       coin() ? grad_b2.get() : nullptr};
    const Scratch scratch(kernels::component_ffn_backward_scratch(problem, workers));
    kernels::component_ffn_backward(problem, {scratch.get(), workers}, parallel);
    record(kept.get(), f.tokens * f.hidden, dtype);
    record(grad_x.get(), inputs, dtype);
    record(grad_w1.get(), size1, dtype);
    record(grad_b1.get(), f.stored_hidden, dtype);
    record(grad_w2.get(), size2, dtype);
    record(grad_b2.get(), f.out_width, dtype);
}

}  // namespace dmao::fuzzing
