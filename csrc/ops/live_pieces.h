// The live blocks of a weight, cut into the pieces and groups that the kernels of masked_linear
// walk. Free of PyTorch, so that the fuzzer of the kernels cuts in the same way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "dmao/integers.h"
#include "dmao/masked_linear.h"

namespace dmao {

// What a weight without a mask is cut into: whole panels of all instruction sets.
inline constexpr std::int64_t kDenseBlock = 96;
// Inputs of a piece: as many rows of a tile, and as much of a packed panel, stay in L1 and L2.
inline constexpr std::int64_t kMostInputs = 384;
// Outputs of a group, whose sums stay in L2 beside the tile, and leave it in long rows.
inline constexpr std::int64_t kMostOutputs = 192;

// The live blocks along one axis of the weight's grid of blocks: offsets[i] to offsets[i + 1] are
// the places of line i in ids, the blocks' places along the other axis.
struct Lines {
    const std::int32_t *offsets, *ids;
};

// Cuts what lives into pieces, and the outputs into groups.
class Cut {
  public:
    // Lines of blocks along the outputs, their ids along the inputs; null: all lives. With `half`
    // outputs, as many others make the gates that go with them.
    // A group takes at most `most_outputs`, a piece `most_inputs`, or a single block. `all`:
    // outputs of which nothing lives have a piece as well, without inputs.
    Cut(std::int64_t outputs, std::int64_t inputs, std::int64_t half, std::int64_t block,
        const std::optional<Lines>& lines, std::int64_t most_outputs, std::int64_t most_inputs,
        bool all)
        : inputs_(inputs), block_(block), most_inputs_(most_inputs), lines_(lines), all_(all) {
        const bool gated = half < outputs;
        for (std::int64_t first = 0, end = 0; first < half; first = end) {
            const std::int32_t begin = static_cast<std::int32_t>(pieces_.size());
            do {
                std::int64_t next = std::min(half, next_boundary(end));
                if (gated) next = std::min(next, next_boundary(half + end) - half);
                add(end, next - end);
                if (gated) add(half + end, next - end);
                end = next;
            } while (end < half && end + block - first <= most_outputs);
            groups_.push_back({static_cast<std::int32_t>(first),
                               static_cast<std::int32_t>(end - first), begin,
                               static_cast<std::int32_t>(pieces_.size())});
            widest_ = std::max(widest_, end - first);
        }
    }

    LivePieces view() const {
        return {pieces_.data(), static_cast<std::int64_t>(pieces_.size()),
                groups_.data(), static_cast<std::int64_t>(groups_.size()),
                widest_,        packed_};
    }

  private:
    std::int64_t next_boundary(std::int64_t i) const { return (i / block_ + 1) * block_; }

    // The pieces of the outputs [first, first + count), which are of one line.
    void add(std::int64_t first, std::int64_t count) {
        const std::size_t before = pieces_.size();
        if (lines_.has_value()) {
            const std::int32_t *id = lines_->ids + lines_->offsets[first / block_],
                               *end = lines_->ids + lines_->offsets[first / block_ + 1];
            while (id != end) {
                const std::int64_t begin = *id * block_;
                std::int64_t stop = begin;
                for (; id != end && *id * block_ == stop; ++id) stop += block_;
                add_run(first, count, begin, std::min(stop, inputs_));
            }
        } else {
            add_run(first, count, 0, inputs_);
        }
        if (all_ && pieces_.size() == before) add_piece(first, count, 0, 0);
    }

    void add_run(std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
        const std::int64_t most = most_inputs_ / block_ * block_;
        for (; begin < end; begin += most) {
            add_piece(first, count, begin, std::min(most, end - begin));
        }
    }

    void add_piece(std::int64_t first, std::int64_t count, std::int64_t begin,
                   std::int64_t inputs) {
        pieces_.push_back({static_cast<std::int32_t>(first), static_cast<std::int32_t>(count),
                           static_cast<std::int32_t>(begin), static_cast<std::int32_t>(inputs),
                           packed_});
        packed_ += round_up(count, kPackedOutputs) * round_up(inputs, kPackedInputs);
    }

    std::int64_t inputs_, block_, most_inputs_, widest_ = 0, packed_ = 0;
    std::optional<Lines> lines_;
    bool all_;
    std::vector<LivePiece> pieces_;
    std::vector<OutputGroup> groups_;
};

// `rows` and `columns`: the lines of blocks along the rows and along the columns of the weight.
inline Cut cut_for_y(const MaskedLinear& f, std::int64_t result_width,
                     const std::optional<Lines>& rows) {
    return {f.out_width, f.in_width, result_width, f.block, rows, kMostOutputs, kMostInputs, true};
}
inline Cut cut_for_grad_x(const MaskedLinear& f, const std::optional<Lines>& columns) {
    return {f.in_width, f.out_width, f.in_width, f.block, columns, kMostOutputs, kMostInputs, true};
}
inline Cut cut_for_grad_w(const MaskedLinear& f, const std::optional<Lines>& rows) {
    return {f.out_width, f.in_width, f.out_width, f.block, rows, f.block, f.block, false};
}

}  // namespace dmao
