// Convolution of channels-last images with 3 x 3 filters: y[h, w] = b + sum of x[h+i-1, w+j-1]
// taps[i, j]; behind it, where that is wanted, ReLU and max pooling.
//
// Floor: 8 H W in out flops for y, for the gradient of x and for that of the filters each, at the
// FMA peak; a pass reads x and writes y once.
//
// That is Winograd's convolution of tiles of 2 x 2 pixels (winograd.h): 16 products per tile,
// channel and filter where the sum above has 36. The transforms are linear in the channels, the
// products quadratic. A worker takes the image in bands of a few rows; a band's inputs, padded by
// zeros, and what is computed of it stay in the second-level cache.
// Gradients of pooled outputs become those of all pixels as a band is read: neither they nor
// what stands before the pooling are ever in memory.
//
// The gradient of the filters is, for each of the 16 positions, the product of the transformed
// inputs, transposed, with the transformed gradients. Its sums belong to a fixed number of parts of
// the images and are added up in order: the bits do not depend on the number of threads.
#include "dmao/conv3x3.h"

#include <cstring>

#include "arena.h"
#include "conv3x3_rows.h"
#include "convert.h"
#include "gemm.h"
#include "winograd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kBandRows = 4;
constexpr std::int64_t kChunk = 20;  // tiles whose products are in the first-level cache
constexpr std::int64_t kParts = 16;

// How images are cut into bands of `rows` rows: whole tiles and whole windows of the pooling.
struct Bands {
    std::int64_t images, height, rows, per_image, count;
    std::int64_t tiles, chunk;  // in a pair of rows; computed together

    explicit Bands(const Conv3x3& c)
        : images(c.images),
          height(c.height),
          rows(round_up(kBandRows, c.time % 2 == 0 ? c.time : 2 * c.time)),
          per_image(divide_up(c.height, rows)),
          count(images * per_image),
          tiles(divide_up(c.width, 2)),
          chunk(smaller(tiles, kChunk)) {}

    std::int64_t image(std::int64_t band) const { return band / per_image; }
    std::int64_t first(std::int64_t band) const { return band % per_image * rows; }
    std::int64_t rows_in(std::int64_t band) const { return smaller(rows, height - first(band)); }
};

// Between two positions: not a multiple of the page size, which would put all of them into the same
// few cache lines.
inline std::int64_t position_size(std::int64_t size) { return round_up(size, 16) + 16; }

// --- Forward, and the gradient of the images

struct ConvolveScratch {
    Arena arena;
    const Bands& bands;
    std::int64_t in, in_lanes, out_lanes;
    std::int64_t taps_size;
    float *taps, *bias, *zero;  // packed, by position
    std::int64_t row_size, sums_row, inputs_size, products_size, own_size;
    float* own;  // of each worker

    ConvolveScratch(const Bands& bands, std::int64_t in, std::int64_t out,
                    const Workspace& workspace)
        : arena(workspace.scratch),
          bands(bands),
          in(in),
          in_lanes(lanes_of(in)),
          out_lanes(lanes_of(out)),
          taps_size(in * out_lanes),
          taps(arena.take(kPositions * kPositions * taps_size)),
          bias(arena.take(out_lanes)),
          zero(arena.take(out_lanes)),
          row_size((2 * bands.tiles + 2) * in_lanes),
          sums_row(2 * bands.tiles * out_lanes),
          inputs_size(position_size(bands.chunk * in_lanes)),
          products_size(position_size(bands.chunk * out_lanes)),
          own_size(round_up((bands.rows + 2) * row_size, 16) +
                   kPositions * (inputs_size + products_size) +
                   round_up(bands.rows * sums_row, 16)),
          own(arena.take(workspace.workers * own_size)) {}
};

// One worker's part of the scratch memory.
struct Convolver {
    const ConvolveScratch& scratch;
    float *rows, *inputs, *products, *sums;

    Convolver(const ConvolveScratch& scratch, std::int64_t worker) : scratch(scratch) {
        Arena own(scratch.own + worker * scratch.own_size);
        const std::int64_t size = (scratch.bands.rows + 2) * scratch.row_size;
        rows = own.take(size);
        inputs = own.take(kPositions * scratch.inputs_size);
        products = own.take(kPositions * scratch.products_size);
        sums = own.take(scratch.bands.rows * scratch.sums_row);
        std::memset(rows, 0, size * sizeof(float));
    }

    // What `rows` hold to `sums`.
    void band(std::int64_t pairs) const {
        const Bands& bands = scratch.bands;
        for (std::int64_t p = 0; p < pairs; ++p) {
            for (std::int64_t t = 0; t < bands.tiles; t += bands.chunk) {
                const std::int64_t tiles = smaller(bands.chunk, bands.tiles - t);
                const float* from = rows + 2 * p * scratch.row_size + 2 * t * scratch.in_lanes;
                float* to = sums + 2 * p * scratch.sums_row + 2 * t * scratch.out_lanes;
                row_of_positions<0>(tiles, from, to);
                row_of_positions<1>(tiles, from, to);
                row_of_positions<2>(tiles, from, to);
                row_of_positions<3>(tiles, from, to);
            }
        }
    }

    template <int i>
    void row_of_positions(std::int64_t tiles, const float* from, float* to) const {
        const std::int64_t in_lanes = scratch.in_lanes, out_lanes = scratch.out_lanes;
        transform_inputs(i, from, scratch.row_size, tiles, in_lanes, inputs, scratch.inputs_size);
        for (int j = 0; j < kPositions; ++j) {
            multiply<Order::row>(tiles, out_lanes, scratch.in, inputs + j * scratch.inputs_size,
                                 in_lanes, scratch.taps + (kPositions * i + j) * scratch.taps_size,
                                 products + j * scratch.products_size, out_lanes, scratch.zero);
        }
        transform_outputs<i>(products, scratch.products_size, tiles, out_lanes, to,
                             scratch.sums_row);
    }
};

// Reads all rows of `source`, writes all rows to `target`.
template <class T, class Source, class Target>
void convolve(const ConvolveScratch& scratch, const T* taps, const Source& source,
              const Target& target, std::int64_t workers, const ParallelFor& parallel) {
    const Bands& bands = scratch.bands;
    transform_taps(taps, source.channels(), target.channels(), scratch.taps, scratch.taps_size);
    std::memset(scratch.zero, 0, scratch.out_lanes * sizeof(float));
    const auto run = [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
        const Convolver own(scratch, worker);
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
    const ConvolveScratch scratch(bands, c.in, c.out, workspace);
    std::memset(scratch.bias, 0, lanes_of(c.out) * sizeof(float));
    if (problem.bias != nullptr) convert(static_cast<const T*>(problem.bias), c.out, scratch.bias);
    const Images<T> images{c, static_cast<const T*>(problem.x)};
    const Outputs<T> outputs{c, scratch.bias, static_cast<T*>(problem.y), problem.choice};
    convolve(scratch, static_cast<const T*>(problem.taps), images, outputs, workspace.workers,
             parallel);
}

template <class T>
void grad_images(const Conv3x3Images& problem, const Workspace& workspace,
                 const ParallelFor& parallel) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    const ConvolveScratch scratch(bands, c.out, c.in, workspace);
    const Gradients<T> gradients{c, static_cast<const T*>(problem.grad_y), problem.choice};
    const WrittenImages<T> images{c, static_cast<T*>(problem.grad_x)};
    convolve(scratch, static_cast<const T*>(problem.taps), gradients, images, workspace.workers,
             parallel);
}

// --- Gradient of the filters

struct FiltersScratch {
    Arena arena;
    std::int64_t in_lanes, out_lanes, taps_size, bias_at, sums_size;
    float* sums;  // [kParts][16 positions, in, out], then [out]: of grad_taps and grad_bias
    std::int64_t row_size, gradients_row, inputs_size, gradients_size, own_size;
    float* own;  // of each part

    FiltersScratch(const Conv3x3& c, const Bands& bands, const Workspace& workspace)
        : arena(workspace.scratch),
          in_lanes(lanes_of(c.in)),
          out_lanes(lanes_of(c.out)),
          taps_size(c.in * out_lanes),
          bias_at(kPositions * kPositions * taps_size),
          sums_size(round_up(bias_at + out_lanes, 16)),
          sums(arena.take(kParts * sums_size)),
          row_size((2 * bands.tiles + 2) * in_lanes),
          gradients_row(2 * bands.tiles * out_lanes),
          inputs_size(position_size(bands.rows / 2 * bands.tiles * in_lanes)),
          gradients_size(position_size(bands.rows / 2 * bands.tiles * out_lanes)),
          own_size(round_up((bands.rows + 2) * row_size, 16) +
                   round_up(bands.rows * gradients_row, 16) +
                   kPositions * (inputs_size + gradients_size)),
          own(arena.take(kParts * own_size)) {}
};

// sums[n] += the sum over k of B[k, n], of a packed B whose columns are whole vectors.
void add_columns(float* panels, std::int64_t depth, std::int64_t columns, float* sums) {
    for (std::int64_t n = 0; n < columns; n += Vec::width) {
        Vec sum(0.0f);
        for (std::int64_t k = 0; k < depth; ++k) {
            sum = sum + load(packed(panels, depth, columns, k, n));
        }
        store(sums + n, load(sums + n) + sum);
    }
}

// One part of the images.
struct Summer {
    const FiltersScratch& scratch;
    const Bands& bands;
    float *rows, *gradient_rows, *inputs, *gradients, *sums;

    Summer(const FiltersScratch& scratch, const Bands& bands, std::int64_t part)
        : scratch(scratch), bands(bands), sums(scratch.sums + part * scratch.sums_size) {
        Arena own(scratch.own + part * scratch.own_size);
        const std::int64_t size = (bands.rows + 2) * scratch.row_size,
                           gradients_rows_size = bands.rows * scratch.gradients_row;
        rows = own.take(size);
        gradient_rows = own.take(gradients_rows_size);
        inputs = own.take(kPositions * scratch.inputs_size);
        gradients = own.take(kPositions * scratch.gradients_size);
        std::memset(rows, 0, size * sizeof(float));
        std::memset(gradient_rows, 0, gradients_rows_size * sizeof(float));
        std::memset(sums, 0, scratch.sums_size * sizeof(float));
    }

    // What `rows` and `gradient_rows` hold, into the sums.
    void band(std::int64_t in, std::int64_t pairs) const {
        const std::int64_t in_lanes = scratch.in_lanes, out_lanes = scratch.out_lanes,
                           depth = pairs * bands.tiles;
        for (int i = 0; i < kPositions; ++i) {
            for (std::int64_t p = 0; p < pairs; ++p) {
                const std::int64_t first = p * bands.tiles;
                transform_inputs(i, rows + 2 * p * scratch.row_size, scratch.row_size, bands.tiles,
                                 in_lanes, inputs + first * in_lanes, scratch.inputs_size);
                transform_gradients(i, gradient_rows + 2 * p * scratch.gradients_row,
                                    scratch.gradients_row, bands.tiles, out_lanes, gradients,
                                    scratch.gradients_size, depth, first);
            }
            for (int j = 0; j < kPositions; ++j) {
                multiply<Order::column>(in, out_lanes, depth, inputs + j * scratch.inputs_size,
                                        in_lanes, gradients + j * scratch.gradients_size,
                                        sums + (kPositions * i + j) * scratch.taps_size, out_lanes);
            }
            if (i == 1) {  // its position 1 is the sum of the tile
                add_columns(gradients + scratch.gradients_size, depth, out_lanes,
                            sums + scratch.bias_at);
            }
        }
    }
};

template <class T>
void grad_filters(const Conv3x3Filters& problem, const Workspace& workspace,
                  const ParallelFor& parallel) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    const FiltersScratch scratch(c, bands, workspace);
    const Images<T> images{c, static_cast<const T*>(problem.x)};
    const Gradients<T> gradients{c, static_cast<const T*>(problem.grad_y), problem.choice};
    parallel(kParts, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t part = begin; part < end; ++part) {
            const Summer own(scratch, bands, part);
            const std::int64_t last = bands.count * (part + 1) / kParts;
            for (std::int64_t b = bands.count * part / kParts; b < last; ++b) {
                const std::int64_t image = bands.image(b), first = bands.first(b),
                                   pairs = divide_up(bands.rows_in(b), 2);
                read_rows(images, image, first - 1, 2 * pairs + 2, 1, scratch.row_size, own.rows);
                read_rows(gradients, image, first, 2 * pairs, 0, scratch.gradients_row,
                          own.gradient_rows);
                own.band(c.in, pairs);
            }
        }
    });
    for (std::int64_t part = 1; part < kParts; ++part) {
        const float* more = scratch.sums + part * scratch.sums_size;
        for (std::int64_t i = 0; i < scratch.sums_size; i += Vec::width) {
            store(scratch.sums + i, load(scratch.sums + i) + load(more + i));
        }
    }
    transform_sums(scratch.sums, scratch.taps_size, c.in, c.out, scratch.out_lanes,
                   static_cast<T*>(problem.grad_taps));
    convert(scratch.sums + scratch.bias_at, c.out, static_cast<T*>(problem.grad_bias));
}

}  // namespace

std::int64_t conv3x3_forward_scratch(const Conv3x3Forward& problem, std::int64_t workers) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    return ConvolveScratch(bands, c.in, c.out, {nullptr, workers}).arena.used();
}

void conv3x3_forward(const Conv3x3Forward& problem, const Workspace& workspace,
                     const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? forward<float>(problem, workspace, parallel)
                                         : forward<bfloat16>(problem, workspace, parallel);
}

std::int64_t conv3x3_images_scratch(const Conv3x3Images& problem, std::int64_t workers) {
    const Conv3x3& c = problem.conv;
    const Bands bands(c);
    return ConvolveScratch(bands, c.out, c.in, {nullptr, workers}).arena.used();
}

void conv3x3_images(const Conv3x3Images& problem, const Workspace& workspace,
                    const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? grad_images<float>(problem, workspace, parallel)
                                         : grad_images<bfloat16>(problem, workspace, parallel);
}

std::int64_t conv3x3_filters_scratch(const Conv3x3Filters& problem, std::int64_t workers) {
    return FiltersScratch(problem.conv, Bands(problem.conv), {nullptr, workers}).arena.used();
}

void conv3x3_filters(const Conv3x3Filters& problem, const Workspace& workspace,
                     const ParallelFor& parallel) {
    problem.conv.dtype == DType::float32 ? grad_filters<float>(problem, workspace, parallel)
                                         : grad_filters<bfloat16>(problem, workspace, parallel);
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
