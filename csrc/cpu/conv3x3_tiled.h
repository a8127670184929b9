// conv3x3 by Winograd's convolution of tiles of 2 x 2 pixels (winograd.h): 16 products per tile,
// channel and filter where the sum itself has 36. The transforms are linear in the channels, the
// products quadratic.
#pragma once

#include <cstring>

#include "arena.h"
#include "conv3x3_rows.h"
#include "gemm.h"
#include "winograd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kChunk = 20;  // tiles whose products are in the first-level cache

// Between two positions: not a multiple of the page size, which would put all of them into the same
// few cache lines.
inline std::int64_t position_size(std::int64_t size) { return round_up(size, 16) + 16; }

// --- Forward, and the gradient of the images

struct TiledScratch {
    Arena arena;
    const Bands& bands;
    std::int64_t tiles, chunk;  // in a pair of rows; computed together
    std::int64_t in, in_lanes, out_lanes;
    std::int64_t taps_size;
    float *taps, *bias, *zero;  // packed, by position
    std::int64_t row_size, sums_row, inputs_size, products_size, own_size;
    float* own;  // of each worker

    TiledScratch(const Bands& bands, std::int64_t in, std::int64_t out, const Workspace& workspace)
        : arena(workspace.scratch),
          bands(bands),
          tiles(divide_up(bands.width, 2)),
          chunk(smaller(tiles, kChunk)),
          in(in),
          in_lanes(lanes_of(in)),
          out_lanes(lanes_of(out)),
          taps_size(in * out_lanes),
          taps(arena.take(kPositions * kPositions * taps_size)),
          bias(arena.take(out_lanes)),
          zero(arena.take(out_lanes)),
          row_size((2 * tiles + 2) * in_lanes),
          sums_row(2 * tiles * out_lanes),
          inputs_size(position_size(chunk * in_lanes)),
          products_size(position_size(chunk * out_lanes)),
          own_size(round_up((bands.rows + 2) * row_size, 16) +
                   kPositions * (inputs_size + products_size) +
                   round_up(bands.rows * sums_row, 16)),
          own(arena.take(workspace.workers * own_size)) {}

    // From [3, 3, in, out].
    template <class T>
    void pack_taps(const T* source, std::int64_t out) const {
        transform_taps(source, in, out, taps, taps_size);
    }

    // One worker's part of the scratch memory.
    struct Worker {
        const TiledScratch& scratch;
        float *rows, *inputs, *products, *sums;

        Worker(const TiledScratch& scratch, std::int64_t worker) : scratch(scratch) {
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
            const TiledScratch& s = scratch;
            for (std::int64_t p = 0; p < pairs; ++p) {
                for (std::int64_t t = 0; t < s.tiles; t += s.chunk) {
                    const std::int64_t tiles = smaller(s.chunk, s.tiles - t);
                    const float* from = rows + 2 * p * s.row_size + 2 * t * s.in_lanes;
                    float* to = sums + 2 * p * s.sums_row + 2 * t * s.out_lanes;
                    row_of_positions<0>(tiles, from, to);
                    row_of_positions<1>(tiles, from, to);
                    row_of_positions<2>(tiles, from, to);
                    row_of_positions<3>(tiles, from, to);
                }
            }
        }

        template <int i>
        void row_of_positions(std::int64_t tiles, const float* from, float* to) const {
            const TiledScratch& s = scratch;
            transform_inputs(i, from, s.row_size, tiles, s.in_lanes, inputs, s.inputs_size);
            for (int j = 0; j < kPositions; ++j) {
                multiply<Order::row>(tiles, s.out_lanes, s.in, inputs + j * s.inputs_size,
                                     s.in_lanes, s.taps + (kPositions * i + j) * s.taps_size,
                                     products + j * s.products_size, s.out_lanes, s.zero);
            }
            transform_outputs<i>(products, s.products_size, tiles, s.out_lanes, to, s.sums_row);
        }
    };
};

// --- Gradient of the filters: for each of the 16 positions, the product of the transformed inputs,
// transposed, with the transformed gradients

struct TiledFilters {
    Arena arena;
    const Bands& bands;
    std::int64_t tiles, in, in_lanes, out_lanes, taps_size, bias_at, sums_size;
    float* sums;  // of each part: [16 positions, in, lanes of out], then of the bias
    std::int64_t row_size, gradients_row, inputs_size, gradients_size, own_size;
    float* own;  // of each part

    TiledFilters(const Conv3x3& c, const Bands& bands, std::int64_t parts,
                 const Workspace& workspace)
        : arena(workspace.scratch),
          bands(bands),
          tiles(divide_up(bands.width, 2)),
          in(c.in),
          in_lanes(lanes_of(c.in)),
          out_lanes(lanes_of(c.out)),
          taps_size(c.in * out_lanes),
          bias_at(kPositions * kPositions * taps_size),
          sums_size(round_up(bias_at + out_lanes, 16)),
          sums(arena.take(parts * sums_size)),
          row_size((2 * tiles + 2) * in_lanes),
          gradients_row(2 * tiles * out_lanes),
          inputs_size(position_size(bands.rows / 2 * tiles * in_lanes)),
          gradients_size(position_size(bands.rows / 2 * tiles * out_lanes)),
          own_size(round_up((bands.rows + 2) * row_size, 16) +
                   round_up(bands.rows * gradients_row, 16) +
                   kPositions * (inputs_size + gradients_size)),
          own(arena.take(parts * own_size)) {}

    template <class T>
    void write(const Conv3x3& c, T* grad_taps) const {
        transform_sums(sums, taps_size, c.in, c.out, out_lanes, grad_taps);
    }

    // One part of the images.
    struct Part {
        const TiledFilters& scratch;
        float *rows, *gradient_rows, *inputs, *gradients, *sums;

        Part(const TiledFilters& scratch, std::int64_t part)
            : scratch(scratch), sums(scratch.sums + part * scratch.sums_size) {
            Arena own(scratch.own + part * scratch.own_size);
            const std::int64_t size = (scratch.bands.rows + 2) * scratch.row_size,
                               gradients_rows_size = scratch.bands.rows * scratch.gradients_row;
            rows = own.take(size);
            gradient_rows = own.take(gradients_rows_size);
            inputs = own.take(kPositions * scratch.inputs_size);
            gradients = own.take(kPositions * scratch.gradients_size);
            std::memset(rows, 0, size * sizeof(float));
            std::memset(gradient_rows, 0, gradients_rows_size * sizeof(float));
            std::memset(sums, 0, scratch.sums_size * sizeof(float));
        }

        // What `rows` and `gradient_rows` hold, into the sums.
        void band(std::int64_t pairs) const {
            const TiledFilters& s = scratch;
            const std::int64_t depth = pairs * s.tiles;
            for (int i = 0; i < kPositions; ++i) {
                for (std::int64_t p = 0; p < pairs; ++p) {
                    const std::int64_t first = p * s.tiles;
                    transform_inputs(i, rows + 2 * p * s.row_size, s.row_size, s.tiles, s.in_lanes,
                                     inputs + first * s.in_lanes, s.inputs_size);
                    transform_gradients(i, gradient_rows + 2 * p * s.gradients_row, s.gradients_row,
                                        s.tiles, s.out_lanes, gradients, s.gradients_size, depth,
                                        first);
                }
                for (int j = 0; j < kPositions; ++j) {
                    multiply<Order::column>(s.in, s.out_lanes, depth, inputs + j * s.inputs_size,
                                            s.in_lanes, gradients + j * s.gradients_size,
                                            sums + (kPositions * i + j) * s.taps_size, s.out_lanes);
                }
                if (i == 1) {  // its position 1 is the sum of the tile
                    add_columns(gradients + s.gradients_size, depth, s.out_lanes, sums + s.bias_at);
                }
            }
        }
    };
};

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
