// Launches of block_attention: widths and tiles by the shape, grids, scratch. Without torch.
#pragma once

#include "block_attention_positions.cuh"
#include "launch.cuh"

namespace dmao {

// Floats that the backward pass needs for each of the pointers of that name.
struct AttentionScratch {
    std::int64_t inner, content_sums, position_bias_sums, position_sums;

    std::int64_t total() const { return inner + content_sums + position_bias_sums + position_sums; }
    void place(float* memory, AttentionBackward& problem) const {
        problem.inner = memory;
        problem.content_sums = problem.inner + inner;
        problem.position_bias_sums = problem.content_sums + content_sums;
        problem.position_sums = problem.position_bias_sums + position_bias_sums;
    }
};

namespace attention {

// The kernels for one type of elements and one width, on a GPU.
template <class E, int kWidth>
class Launches {
  public:
    explicit Launches(const Gpu& gpu) : gpu_(gpu) {}

    // Why this GPU cannot run it; null: it can.
    const char* refusal(const Attention& a, bool backward) const {
        const bool positions = a.rel_pos.data != nullptr;
        const int limit = shared_bytes_of(gpu_.architecture);
        const auto fits = [&](AttentionPass pass) {
            return attention_shared_bytes(pass, kWidth, kElement, positions) <= limit;
        };
        const bool all = backward ? fits(AttentionPass::queries) && fits(AttentionPass::keys) &&
                                        (!positions || fits(AttentionPass::positions))
                                  : fits(AttentionPass::forward);
        return all ? nullptr
                   : "this GPU has too little shared memory for float32 heads of more than 128 "
                     "with "
                     "relative positions";
    }

    AttentionScratch scratch(const Attention& a) const {
        AttentionScratch found{std::int64_t{a.heads} * a.rows, 0, 0, 0};
        if (a.content_bias != nullptr) found.content_sums = key_blocks(a) * a.heads * a.width;
        if (a.rel_pos.data == nullptr) return found;
        const AttentionDiagonals diagonals = diagonals_of(a);
        const std::int64_t blocks =
            std::int64_t{diagonals.count()} * a.heads * parts_of(a, diagonals);
        if (a.position_bias != nullptr) found.position_bias_sums = blocks * a.width;
        found.position_sums = blocks * 2 * kDiagonalSide * a.width;
        return found;
    }

    void run(const AttentionForward& problem) const {
        if (problem.attention.rel_pos.data == nullptr) {
            run_forward<false>(problem);
        } else {
            run_forward<true>(problem);
        }
    }
    void run(const AttentionBackward& problem) const {
        const Attention& a = problem.attention;
        if (a.rel_pos.data == nullptr) {
            run_backward<false>(problem);
        } else {
            run_backward<true>(problem);
            run_positions(problem);
        }
        if (a.content_bias != nullptr) {
            add_bias(a, problem.content_sums, problem.grad_content_bias, key_blocks(a));
        }
    }

  private:
    static constexpr int kElement = static_cast<int>(sizeof(E));
    static constexpr int kDiagonalSide = Positions<E, kWidth>::kSide;

    // Enough tiles of rows for every utterance and all padding.
    static Grid grid(const Attention& a, int tile) {
        return {static_cast<unsigned>(a.rows / tile + a.utterances),
                static_cast<unsigned>(a.heads)};
    }
    static std::int64_t key_blocks(const Attention& a) {
        const int side =
            attention_tile(AttentionPass::keys, kWidth, kElement, a.rel_pos.data != nullptr).keys;
        return a.rows / side + a.utterances;
    }
    static AttentionDiagonals diagonals_of(const Attention& a) {
        return attention_diagonals(a.left, a.right, a.chunk, a.left_chunks,
                                   a.frames > 1 ? a.frames : 1, a.reach, kDiagonalSide);
    }
    int parts_of(const Attention& a, const AttentionDiagonals& diagonals) const {
        return attention_parts(diagonals.count(), a.heads, a.utterances, gpu_.processors);
    }

    template <bool kPositions>
    void run_forward(const AttentionForward& problem) const {
        using Use = Forward<E, kWidth, kPositions>;
        launch<forward<E, kWidth, kPositions>>(gpu_, grid(problem.attention, Use::kQueries),
                                               Use::kThreads, Use::kSharedBytes, problem);
    }
    template <bool kPositions>
    void run_backward(const AttentionBackward& problem) const {
        using ByQueries = Queries<E, kWidth, kPositions>;
        using ByKeys = Keys<E, kWidth, kPositions>;
        launch<query_gradients<E, kWidth, kPositions>>(
            gpu_, grid(problem.attention, ByQueries::kQueries), ByQueries::kThreads,
            ByQueries::kSharedBytes, problem);
        launch<key_gradients<E, kWidth, kPositions>>(gpu_, grid(problem.attention, ByKeys::kSide),
                                                     ByKeys::kThreads, ByKeys::kSharedBytes,
                                                     problem);
    }
    void run_positions(const AttentionBackward& problem) const {
        using Use = Positions<E, kWidth>;
        const Attention& a = problem.attention;
        const AttentionDiagonals diagonals = diagonals_of(a);
        const int parts = parts_of(a, diagonals);
        const unsigned heads = static_cast<unsigned>(a.heads);
        launch<position_gradients<E, kWidth>>(
            gpu_,
            Grid{static_cast<unsigned>(diagonals.count()), heads, static_cast<unsigned>(parts)},
            Use::kThreads, Use::kSharedBytes, problem, diagonals);
        launch<sum_positions<E>>(gpu_, Grid{static_cast<unsigned>(2 * a.reach + 1), heads},
                                 kSumThreads, 0, problem, diagonals, parts, kDiagonalSide);
        if (a.position_bias != nullptr) {
            add_bias(a, problem.position_bias_sums, problem.grad_position_bias,
                     std::int64_t{diagonals.count()} * parts);
        }
    }
    void add_bias(const Attention& a, const float* sums, void* gradient, std::int64_t count) const {
        launch<sum_bias<E>>(
            gpu_, Grid{static_cast<unsigned>((a.width + 31) / 32), static_cast<unsigned>(a.heads)},
            kSumThreads, 0, sums, gradient, static_cast<int>(count), a.width);
    }

    Gpu gpu_;
};

}  // namespace attention

// use(launches) with the kernels for elements E and a width. On the host two widths have to do:
// compiling all takes a minute (the others are run by csrc/tests/cuda/block_attention.cpp).
template <class E, class Use>
auto with_attention(const Gpu& gpu, int width, const Use& use) {
#if defined(__CUDACC__)
    switch (attention_width(width, static_cast<int>(sizeof(E)))) {
        case 32:
            return use(attention::Launches<E, 32>(gpu));
        case 64:
            return use(attention::Launches<E, 64>(gpu));
        case 96:
            if constexpr (sizeof(E) == 2) return use(attention::Launches<E, 96>(gpu));
            [[fallthrough]];
        case 128:
            return use(attention::Launches<E, 128>(gpu));
        default:
            return use(attention::Launches<E, 256>(gpu));
    }
#else
    if (width <= 64) return use(attention::Launches<E, 64>(gpu));
    return use(attention::Launches<E, 256>(gpu));
#endif
}

}  // namespace dmao
