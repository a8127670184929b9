// Convolution of channels-last images with 3 x 3 filters: y[h, w] = b + sum of x[h+i-1, w+j-1]
// taps[i, j].
//
// Floor: 18 H W in out flops for y, for the gradient of x and for that of the filters each, at the
// FMA peak; a pass reads x and writes y once.
//
// No patch is ever copied together. In a row of the image, padded by a zero pixel on each side, the
// three neighbours of a pixel are one run of 3 in numbers, and the runs of neighbouring pixels
// overlap: they are the rows of a matrix [width, 3 in] whose row stride is `in`. So an output row
// is three products with matrices that fit into L1, panel by panel. Groups of rows are padded into
// a buffer that stays in L2, which also widens bfloat16.
//
// The gradient of the filters is, per row of the image, three products of such a matrix,
// transposed, with the row of grad_y. Its sums belong to a fixed number of parts of the images and
// are added up in order: the bits do not depend on the number of threads.
#include "dmao/conv3x3.h"

#include <cstring>

#include "arena.h"
#include "convert.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kGroup = 8;  // rows of an image that are padded together
constexpr std::int64_t kParts = 16;

std::int64_t groups_of(const Conv3x3& c) { return c.images * divide_up(c.height, kGroup); }

// What one worker has of the images: up to kGroup rows with their neighbours.
template <class T>
struct Rows {
    const Conv3x3& c;
    std::int64_t size;          // of a padded row
    float* padded;              // [kGroup + 2, width + 2, in]
    std::int64_t first, count;  // rows of all images that are in it now, without the neighbours

    Rows(const Conv3x3& c, Arena& arena)
        : c(c),
          size((c.width + 2) * c.in),
          padded(arena.take((kGroup + 2) * size)),
          first(0),
          count(0) {}

    void fill(std::int64_t group) {
        const std::int64_t per_image = divide_up(c.height, kGroup);
        const std::int64_t image = group / per_image, start = group % per_image * kGroup;
        first = image * c.height + start;
        count = smaller(kGroup, c.height - start);
        for (std::int64_t i = 0; i < count + 2; ++i) {
            const std::int64_t h = start + i - 1;
            float* row = padded + i * size;
            if (h < 0 || h >= c.height) {
                std::memset(row, 0, size * sizeof(float));
                continue;
            }
            std::memset(row, 0, c.in * sizeof(float));
            std::memset(row + size - c.in, 0, c.in * sizeof(float));
            convert(static_cast<const T*>(c.x) + (first + i - 1) * c.width * c.in, c.width * c.in,
                    row + c.in);
        }
    }

    // The matrix of runs, row stride `in`, for the filters' row `tap` and output row first + i.
    const float* runs(std::int64_t i, std::int64_t tap) const { return padded + (i + tap) * size; }
};

// B[depth, columns] as panels, from a matrix whose rows are contiguous.
template <class T>
void pack(const T* source, std::int64_t depth, std::int64_t columns, float* panels) {
    const Selection<T> matrix{source, columns, nullptr, nullptr};
    for (std::int64_t n = 0; n < columns; n += kPanel) {
        pack_panel(matrix, 0, depth, n, smaller(kPanel, columns - n), panels + n * depth);
    }
}

// --- Forward

struct ForwardScratch {
    Arena arena;
    std::int64_t tap_size;
    float *taps, *bias;  // packed filters, by row
    std::int64_t own_size;
    float* own;  // of each worker

    ForwardScratch(const Conv3x3& c, const Workspace& workspace)
        : arena(workspace.scratch),
          tap_size(3 * c.in * padded_columns(c.out)),
          taps(arena.take(3 * tap_size)),
          bias(arena.take(c.out)),
          own_size(round_up((kGroup + 2) * (c.width + 2) * c.in, 16) +
                   round_up(c.width * c.out, 16)),
          own(arena.take(workspace.workers * own_size)) {}
};

template <class T>
void forward(const Conv3x3Forward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const Conv3x3& c = problem.conv;
    const ForwardScratch scratch(c, workspace);
    for (std::int64_t tap = 0; tap < 3; ++tap) {
        pack(static_cast<const T*>(problem.taps) + tap * 3 * c.in * c.out, 3 * c.in, c.out,
             scratch.taps + tap * scratch.tap_size);
    }
    std::memset(scratch.bias, 0, c.out * sizeof(float));
    if (problem.bias != nullptr) convert(static_cast<const T*>(problem.bias), c.out, scratch.bias);

    const std::int64_t groups = groups_of(c), workers = workspace.workers;
    parallel(workers, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t worker = begin; worker < end; ++worker) {
            Arena own(scratch.own + worker * scratch.own_size);
            Rows<T> rows(c, own);
            float* sums = own.take(c.width * c.out);
            for (std::int64_t g = groups * worker / workers; g < groups * (worker + 1) / workers;
                 ++g) {
                rows.fill(g);
                for (std::int64_t i = 0; i < rows.count; ++i) {
                    T* y = static_cast<T*>(problem.y) + (rows.first + i) * c.width * c.out;
                    for (std::int64_t w = 0; w < c.width; ++w) {
                        std::memcpy(sums + w * c.out, scratch.bias, c.out * sizeof(float));
                    }
                    for (std::int64_t tap = 0; tap < 3; ++tap) {
                        multiply<Order::row>(c.width, c.out, 3 * c.in, rows.runs(i, tap), c.in,
                                             scratch.taps + tap * scratch.tap_size, sums, c.out);
                    }
                    convert(sums, c.width * c.out, y);
                }
            }
        }
    });
}

// --- Gradient of the filters

struct BackwardScratch {
    Arena arena;
    std::int64_t sum_size;
    float* sums;  // [kParts][3, 3 in, out], then [out]: of grad_taps and grad_bias
    std::int64_t own_size;
    float* own;  // of each part

    BackwardScratch(const Conv3x3& c, const Workspace& workspace)
        : arena(workspace.scratch),
          sum_size(round_up((9 * c.in + 1) * c.out, 16)),
          sums(arena.take(kParts * sum_size)),
          own_size(round_up((kGroup + 2) * (c.width + 2) * c.in, 16) +
                   round_up(c.width * padded_columns(c.out), 16)),
          own(arena.take(kParts * own_size)) {}
};

// sums[n] += the sum over k of B[k, n], of a packed B.
void add_columns(const float* panels, std::int64_t depth, std::int64_t columns, float* sums) {
    for (std::int64_t n = 0; n < columns; n += Vec::width) {
        const std::int64_t panel = n / kPanel * kPanel, width = panel_columns(columns, panel);
        Vec sum(0.0f);
        for (std::int64_t k = 0; k < depth; ++k) {
            sum = sum + load(panels + panel * depth + k * width + n - panel);
        }
        const int count = static_cast<int>(smaller(Vec::width, columns - n));
        store(sums + n, load(sums + n, count) + sum, count);
    }
}

template <class T>
void backward(const Conv3x3Backward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    const Conv3x3& c = problem.conv;
    const BackwardScratch scratch(c, workspace);
    const std::int64_t groups = groups_of(c), taps = 9 * c.in * c.out;
    parallel(kParts, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t part = begin; part < end; ++part) {
            float* sums = scratch.sums + part * scratch.sum_size;
            std::memset(sums, 0, scratch.sum_size * sizeof(float));
            Arena own(scratch.own + part * scratch.own_size);
            Rows<T> rows(c, own);
            float* grad = own.take(c.width * padded_columns(c.out));
            for (std::int64_t g = groups * part / kParts; g < groups * (part + 1) / kParts; ++g) {
                rows.fill(g);
                for (std::int64_t i = 0; i < rows.count; ++i) {
                    pack(static_cast<const T*>(problem.grad_y) + (rows.first + i) * c.width * c.out,
                         c.width, c.out, grad);
                    add_columns(grad, c.width, c.out, sums + taps);
                    for (std::int64_t tap = 0; tap < 3; ++tap) {
                        multiply<Order::column>(3 * c.in, c.out, c.width, rows.runs(i, tap), c.in,
                                                grad, sums + tap * 3 * c.in * c.out, c.out);
                    }
                }
            }
        }
    });
    for (std::int64_t part = 1; part < kParts; ++part) {
        const float* more = scratch.sums + part * scratch.sum_size;
        for (std::int64_t i = 0; i < scratch.sum_size; i += Vec::width) {
            store(scratch.sums + i, load(scratch.sums + i) + load(more + i));
        }
    }
    convert(scratch.sums, taps, static_cast<T*>(problem.grad_taps));
    convert(scratch.sums + taps, c.out, static_cast<T*>(problem.grad_bias));
}

}  // namespace

std::int64_t conv3x3_forward_scratch(const Conv3x3Forward& problem, std::int64_t workers) {
    return ForwardScratch(problem.conv, {nullptr, workers}).arena.used();
}

void conv3x3_forward(const Conv3x3Forward& problem, const Workspace& workspace,
                     const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? forward<float>(problem, workspace, parallel)
                                         : forward<bfloat16>(problem, workspace, parallel);
}

std::int64_t conv3x3_backward_scratch(const Conv3x3Backward& problem, std::int64_t workers) {
    return BackwardScratch(problem.conv, {nullptr, workers}).arena.used();
}

void conv3x3_backward(const Conv3x3Backward& problem, const Workspace& workspace,
                      const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? backward<float>(problem, workspace, parallel)
                                         : backward<bfloat16>(problem, workspace, parallel);
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
