// Convolution of channels-last images with 3 x 3 filters: y[h, w] = b + sum of x[h+i-1, w+j-1]
// taps[i, j]; behind it, where that is wanted, ReLU and max pooling.
//
// Floor: 8 H W in out flops for y, for the gradient of x and for that of the filters each, at the
// FMA peak; a pass reads x and writes y once.
//
// That is Winograd's convolution (conv3x3_tiled.h); images of few channels are convolved directly
// (conv3x3_direct.h). A worker takes the image in bands of a few rows; a band's inputs, padded by
// zeros, and what is computed of it stay in the second-level cache.
// Gradients of pooled outputs become those of all pixels as a band is read: neither they nor
// what stands before the pooling are ever in memory.
//
// The sums of the filters' gradient belong to a fixed number of parts of the images and are added
// up in order: the bits do not depend on the number of threads.
#include "dmao/conv3x3.h"

#include <cstring>

#include "conv3x3_direct.h"
#include "conv3x3_rows.h"
#include "conv3x3_tiled.h"
#include "convert.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kParts = 16;

// Of the images that are read. With more of them Winograd's convolution is as fast, then faster.
constexpr std::int64_t kFewChannels = 2;

// f.template operator()<Scratch>() with the one for images of so many channels.
template <class Direct, class Tiled, class Function>
auto choose(std::int64_t channels, const Function& f) {
    return channels <= kFewChannels ? f.template operator()<Direct>()
                                    : f.template operator()<Tiled>();
}

// --- Forward, and the gradient of the images

// Reads all rows of `source`, writes all rows to `target`.
template <class Scratch, class T, class Source, class Target>
void convolve(const Scratch& scratch, const T* taps, const Source& source, const Target& target,
              std::int64_t workers, const ParallelFor& parallel) {
    const Bands& bands = scratch.bands;
    scratch.pack_taps(taps, target.channels());
    std::memset(scratch.zero, 0, scratch.out_lanes * sizeof(float));
    const auto run = [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
        const typename Scratch::Worker own(scratch, worker);
        for (std::int64_t b = begin; b < end; ++b) {
            const std::int64_t image = bands.image(b), first = bands.first(b),
                               count = bands.rows_in(b), pairs = divide_up(count, 2);
            read_rows(source, image, first - 1, 2 * pairs + 2, 1, scratch.row_size, own.rows);
            own.band(pairs);
            target.write(image, first, count, own.sums, scratch.sums_row);
        }
    };
    parallel.shares(bands.count, workers, run);
}

template <class T>
void forward(const Conv3x3Forward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    choose<DirectScratch, TiledScratch>(c.in, [&]<class Scratch>() {
        const Scratch scratch(bands, c.in, c.out, workspace);
        std::memset(scratch.bias, 0, lanes_of(c.out) * sizeof(float));
        if (problem.bias != nullptr) {
            convert(static_cast<const T*>(problem.bias), c.out, scratch.bias);
        }
        const Images<T> images{c, static_cast<const T*>(problem.x), scratch.in_lanes};
        const Outputs<T> outputs{c, scratch.bias, static_cast<T*>(problem.y), problem.choice};
        convolve(scratch, static_cast<const T*>(problem.taps), images, outputs, workspace.workers,
                 parallel);
    });
}

template <class T>
void grad_images(const Conv3x3Images& problem, const Workspace& workspace,
                 const ParallelFor& parallel) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    choose<DirectScratch, TiledScratch>(c.out, [&]<class Scratch>() {
        const Scratch scratch(bands, c.out, c.in, workspace);
        const Gradients<T> gradients{c, static_cast<const T*>(problem.grad_y), problem.choice,
                                     scratch.in_lanes};
        const WrittenImages<T> images{c, static_cast<T*>(problem.grad_x)};
        convolve(scratch, static_cast<const T*>(problem.taps), gradients, images, workspace.workers,
                 parallel);
    });
}

// --- Gradient of the filters

template <class T>
void grad_filters(const Conv3x3Filters& problem, const Workspace& workspace,
                  const ParallelFor& parallel) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    choose<DirectFilters, TiledFilters>(c.in, [&]<class Scratch>() {
        const Scratch scratch(c, bands, kParts, workspace);
        const Images<T> images{c, static_cast<const T*>(problem.x), scratch.in_lanes};
        const Gradients<T> gradients{c, static_cast<const T*>(problem.grad_y), problem.choice,
                                     scratch.out_lanes};
        parallel(kParts, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t part = begin; part < end; ++part) {
                const typename Scratch::Part own(scratch, part);
                const std::int64_t last = bands.count * (part + 1) / kParts;
                for (std::int64_t b = bands.count * part / kParts; b < last; ++b) {
                    const std::int64_t image = bands.image(b), first = bands.first(b),
                                       pairs = divide_up(bands.rows_in(b), 2);
                    read_rows(images, image, first - 1, 2 * pairs + 2, 1, scratch.row_size,
                              own.rows);
                    read_rows(gradients, image, first, 2 * pairs, 0, scratch.gradients_row,
                              own.gradient_rows);
                    own.band(pairs);
                }
            }
        });
        for (std::int64_t part = 1; part < kParts; ++part) {
            const float* more = scratch.sums + part * scratch.sums_size;
            for (std::int64_t i = 0; i < scratch.sums_size; i += Vec::width) {
                store(scratch.sums + i, load(scratch.sums + i) + load(more + i));
            }
        }
        scratch.write(c, static_cast<T*>(problem.grad_taps));
        convert(scratch.sums + scratch.bias_at, c.out, static_cast<T*>(problem.grad_bias));
    });
}

// Of a convolution of images with `in` channels, by so many workers.
std::int64_t convolve_scratch(const Conv3x3& c, std::int64_t in, std::int64_t out,
                              std::int64_t workers) {
    const Bands bands(c);
    return choose<DirectScratch, TiledScratch>(in, [&]<class Scratch>() {
        return Scratch(bands, in, out, {nullptr, workers}).arena.used();
    });
}

}  // namespace

std::int64_t conv3x3_forward_scratch(const Conv3x3Forward& problem, std::int64_t workers) {
    return convolve_scratch(problem.conv, problem.conv.in, problem.conv.out, workers);
}

void conv3x3_forward(const Conv3x3Forward& problem, const Workspace& workspace,
                     const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? forward<float>(problem, workspace, parallel)
                                         : forward<bfloat16>(problem, workspace, parallel);
}

std::int64_t conv3x3_images_scratch(const Conv3x3Images& problem, std::int64_t workers) {
    return convolve_scratch(problem.conv, problem.conv.out, problem.conv.in, workers);
}

void conv3x3_images(const Conv3x3Images& problem, const Workspace& workspace,
                    const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? grad_images<float>(problem, workspace, parallel)
                                         : grad_images<bfloat16>(problem, workspace, parallel);
}

std::int64_t conv3x3_filters_scratch(const Conv3x3Filters& problem, std::int64_t workers) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    return choose<DirectFilters, TiledFilters>(c.in, [&]<class Scratch>() {
        return Scratch(c, bands, kParts, {nullptr, workers}).arena.used();
    });
}

void conv3x3_filters(const Conv3x3Filters& problem, const Workspace& workspace,
                     const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? grad_filters<float>(problem, workspace, parallel)
                                         : grad_filters<bfloat16>(problem, workspace, parallel);
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
