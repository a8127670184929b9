#include "dmao/masked_linear.h"

#include <optional>
#include <vector>

#include "../../ops/live_pieces.h"
#include "fuzz.h"

namespace dmao::fuzzing {
namespace {

// The live blocks of a grid along one axis.
struct Compressed {
    std::vector<std::int32_t> offsets{0}, ids;

    Compressed(const std::vector<bool>& grid, std::int64_t lines, std::int64_t others,
               std::int64_t line_step, std::int64_t other_step) {
        for (std::int64_t line = 0; line < lines; ++line) {
            for (std::int64_t i = 0; i < others; ++i) {
                if (grid[line * line_step + i * other_step]) {
                    ids.push_back(static_cast<std::int32_t>(i));
                }
            }
            offsets.push_back(static_cast<std::int32_t>(ids.size()));
        }
        ids.shrink_to_fit();
    }

    Lines view() const { return {offsets.data(), ids.data()}; }
};

}  // namespace

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    MaskedLinear f{};
    const DType dtype = f.dtype = some_dtype();
    f.activation = static_cast<Activation>(below(5));
    const bool gated = f.activation == Activation::glu;
    f.tokens = one_of({0, 1, 2, 7, 33, 127, 200, 300});
    f.in_width = one_of({0, 1, 3, 16, 47, 96, 200, 500});
    f.out_width = 2 * one_of({0, 1, 3, 16, 47, 96, 130});
    const bool masked = coin();
    f.block = masked ? 16 * (1 + below(8)) : kDenseBlock;
    const std::int64_t rows = (f.out_width + f.block - 1) / f.block;
    const std::int64_t columns = (f.in_width + f.block - 1) / f.block;
    std::vector<bool> grid(rows * columns);
    const std::int64_t odds = below(4);
    for (std::size_t i = 0; i < grid.size(); ++i) grid[i] = below(3) < odds;
    const Compressed by_row(grid, rows, columns, columns, 1),
        by_column(grid, columns, rows, 1, columns);
    std::optional<Lines> row_lines, column_lines;
    if (masked) row_lines = by_row.view();
    if (masked) column_lines = by_column.view();

    f.x_stride = f.in_width + below(5);
    f.w_stride = f.in_width + below(5);
    const auto size = [](std::int64_t rows, std::int64_t width, std::int64_t stride) {
        return rows == 0 ? 0 : (rows - 1) * stride + width;
    };
    const std::int64_t result_width = gated ? f.out_width / 2 : f.out_width;
    const std::int64_t outputs = f.tokens * result_width, inputs = f.tokens * f.in_width;
    const std::int64_t weights = f.out_width * f.in_width, kept = f.tokens * f.out_width;
    const std::int64_t grad_stride = result_width + below(5);
    const auto x = tensor(size(f.tokens, f.in_width, f.x_stride), dtype),
               w = tensor(size(f.out_width, f.in_width, f.w_stride), dtype),
               b = tensor(f.out_width, dtype), y = tensor(outputs, dtype),
               pre_activation = tensor(kept, dtype),
               grad_y = tensor(size(f.tokens, result_width, grad_stride), dtype),
               grad_x = tensor(inputs, dtype), grad_w = tensor(weights, dtype),
               grad_b = tensor(f.out_width, dtype);
    f.x = x.get();
    f.w = w.get();

    const Cut for_y = cut_for_y(f, result_width, row_lines);
    for (void* keep : {static_cast<void*>(nullptr), static_cast<void*>(pre_activation.get())}) {
        const MaskedLinearForward problem{f, for_y.view(), coin() ? b.get() : nullptr, y.get(),
                                          keep};
        const Scratch scratch(kernels::masked_linear_forward_scratch(problem, workers));
        kernels::masked_linear_forward(problem, {scratch.get(), workers}, parallel);
        record(y.get(), outputs, dtype);
    }
    const Cut for_grad_x = cut_for_grad_x(f, column_lines);
    const Cut for_grad_w = cut_for_grad_w(f, row_lines);
    const MaskedLinearBackward problem{f,
                                       for_grad_x.view(),
                                       for_grad_w.view(),
                                       grad_y.get(),
                                       grad_stride,
                                       pre_activation.get(),
                                       coin() ? grad_x.get() : nullptr,
                                       coin() ? grad_w.get() : nullptr,
                                       coin() ? grad_b.get() : nullptr};
    const Scratch scratch(kernels::masked_linear_backward_scratch(problem, workers));
    kernels::masked_linear_backward(problem, {scratch.get(), workers}, parallel);
    record(grad_x.get(), inputs, dtype);
    record(grad_w.get(), weights, dtype);
    record(grad_b.get(), f.out_width, dtype);
}

}  // namespace dmao::fuzzing
