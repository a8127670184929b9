// conv3x3 over images of few channels: the products themselves, where the transforms of Winograd's
// tiles would cost more than the products that they save.
//
// Where the channels of a pixel stand next to each other, the 3 * in values under one row of a
// filter do, too, and those for the next pixel begin `in` further on: rows of a matrix that
// overlap, which gemm.h reads in place. So a row of y is the sum of three products [width, 3 in] [3
// in, out], and the gradient of the filters are three products of that matrix, transposed, with a
// row of gradients.
#pragma once

#include <cstring>

#include "arena.h"
#include "conv3x3_rows.h"
#include "convert.h"
#include "gemm.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// --- Forward, and the gradient of the images

struct DirectScratch {
    Arena arena;
    const Bands& bands;
    std::int64_t in_lanes, out_lanes, depth, taps_size;
    float *taps, *bias, *zero;  // packed, a B for each row of the filters
    std::int64_t row_size, sums_row, own_size;
    float* own;  // of each worker

    DirectScratch(const Bands& bands, std::int64_t in, std::int64_t out, const Workspace& workspace)
        : arena(workspace.scratch),
          bands(bands),
          in_lanes(in),
          out_lanes(lanes_of(out)),
          depth(3 * in),
          taps_size(depth * out_lanes),
          taps(arena.take(3 * taps_size)),
          bias(arena.take(out_lanes)),
          zero(arena.take(out_lanes)),
          row_size((bands.width + 2) * in),
          sums_row(bands.width * out_lanes),
          own_size(round_up((bands.rows + 2) * row_size, 16) + round_up(bands.rows * sums_row, 16)),
          own(arena.take(workspace.workers * own_size)) {}

    // From [3, 3, in, out].
    template <class T>
    void pack_taps(const T* source, std::int64_t out) const {
        for (std::int64_t k = 0; k < 3 * depth; ++k) {
            by_vectors(out, [&](std::int64_t n, int count) {
                store(packed(taps + k / depth * taps_size, depth, out, k % depth, n),
                      load(source + k * out + n, count));
            });
        }
    }

    // One worker's part of the scratch memory.
    struct Worker {
        const DirectScratch& scratch;
        float *rows, *sums;

        Worker(const DirectScratch& scratch, std::int64_t worker) : scratch(scratch) {
            Arena own(scratch.own + worker * scratch.own_size);
            const std::int64_t size = (scratch.bands.rows + 2) * scratch.row_size;
            rows = own.take(size);
            sums = own.take(scratch.bands.rows * scratch.sums_row);
            std::memset(rows, 0, size * sizeof(float));
        }

        // What `rows` hold to `sums`.
        void band(std::int64_t pairs) const {
            const DirectScratch& s = scratch;
            for (std::int64_t h = 0; h < 2 * pairs; ++h) {
                for (std::int64_t i = 0; i < 3; ++i) {
                    multiply<Order::row>(s.bands.width, s.out_lanes, s.depth,
                                         rows + (h + i) * s.row_size, s.in_lanes,
                                         s.taps + i * s.taps_size, sums + h * s.sums_row,
                                         s.out_lanes, i == 0 ? s.zero : nullptr);
                }
            }
        }
    };
};

// --- Gradient of the filters

struct DirectFilters {
    Arena arena;
    const Bands& bands;
    std::int64_t in_lanes, out_lanes, depth, taps_size, bias_at, sums_size;
    float* sums;  // of each part: [3, 3, in, lanes of out], then of the bias
    std::int64_t row_size, gradients_row, own_size;
    float* own;  // of each part

    DirectFilters(const Conv3x3& c, const Bands& bands, std::int64_t parts,
                  const Workspace& workspace)
        : arena(workspace.scratch),
          bands(bands),
          in_lanes(c.in),
          out_lanes(lanes_of(c.out)),
          depth(3 * c.in),
          taps_size(depth * out_lanes),
          bias_at(3 * taps_size),
          sums_size(round_up(bias_at + out_lanes, 16)),
          sums(arena.take(parts * sums_size)),
          row_size((bands.width + 2) * c.in),
          gradients_row(bands.width * out_lanes),
          own_size(round_up((bands.rows + 2) * row_size, 16) +
                   round_up(bands.rows * gradients_row, 16) + round_up(gradients_row, 16)),
          own(arena.take(parts * own_size)) {}

    template <class T>
    void write(const Conv3x3& c, T* grad_taps) const {
        for (std::int64_t k = 0; k < 3 * depth; ++k) {
            convert(sums + k * out_lanes, c.out, grad_taps + k * c.out);
        }
    }

    // One part of the images.
    struct Part {
        const DirectFilters& scratch;
        float *rows, *gradient_rows, *panels, *sums;

        Part(const DirectFilters& scratch, std::int64_t part)
            : scratch(scratch), sums(scratch.sums + part * scratch.sums_size) {
            Arena own(scratch.own + part * scratch.own_size);
            const std::int64_t size = (scratch.bands.rows + 2) * scratch.row_size,
                               gradients = scratch.bands.rows * scratch.gradients_row;
            rows = own.take(size);
            gradient_rows = own.take(gradients);
            panels = own.take(scratch.gradients_row);
            std::memset(rows, 0, size * sizeof(float));
            std::memset(gradient_rows, 0, gradients * sizeof(float));
            std::memset(sums, 0, scratch.sums_size * sizeof(float));
        }

        // What `rows` and `gradient_rows` hold, into the sums.
        void band(std::int64_t pairs) const {
            const DirectFilters& s = scratch;
            for (std::int64_t h = 0; h < 2 * pairs; ++h) {
                const float* gradients = packed_row(gradient_rows + h * s.gradients_row);
                for (std::int64_t i = 0; i < 3; ++i) {
                    multiply<Order::column>(s.depth, s.out_lanes, s.bands.width,
                                            rows + (h + i) * s.row_size, s.in_lanes, gradients,
                                            sums + i * s.taps_size, s.out_lanes);
                }
                add_columns(gradients, s.bands.width, s.out_lanes, sums + s.bias_at);
            }
        }

        // A row of one panel is packed as it is.
        const float* packed_row(const float* row) const {
            const std::int64_t lanes = scratch.out_lanes, width = scratch.bands.width;
            if (lanes <= kPanel) return row;
            for (std::int64_t n = 0; n < lanes; n += kPanel) {
                pack_panel(Selection<float>{row, lanes, nullptr, nullptr}, 0, width, n,
                           smaller(kPanel, lanes - n), panels + n * width);
            }
            return panels;
        }
    };
};

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
