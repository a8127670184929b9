#include "dmao/block_attention.h"

#include <vector>

#include "fuzz.h"

namespace dmao::fuzzing {
namespace {

// The live blocks of a grid, in CSR form.
struct Mask {
    std::vector<std::int32_t> offsets{0}, ids;

    explicit Mask(std::int64_t blocks) {
        for (std::int64_t row = 0; row < blocks; ++row) {
            for (std::int64_t column = 0; column < blocks; ++column) {
                if (coin()) ids.push_back(static_cast<std::int32_t>(column));
            }
            offsets.push_back(static_cast<std::int32_t>(ids.size()));
        }
        ids.shrink_to_fit();
    }
};

std::int64_t bound() { return coin() ? -1 : one_of({0, 1, 5, 30, 100}); }

}  // namespace

void fuzz(const ParallelFor& parallel, std::int64_t workers) {
    BlockAttention a{};
    const DType dtype = a.dtype = some_dtype();
    a.heads = below(4);
    a.width = one_of({1, 3, 8, 16, 17, 64, 80});
    std::vector<std::int32_t> spans;
    for (std::int64_t i = below(4); i > 0; --i) {
        a.rows += coin() ? below(4) : 0;
        const std::int64_t length = one_of({0, 1, 2, 7, 64, 65, 150, 300});
        spans.push_back(static_cast<std::int32_t>(a.rows));
        spans.push_back(static_cast<std::int32_t>(length));
        a.rows += length;
        a.longest = length > a.longest ? length : a.longest;
        ++a.utterances;
    }
    a.rows += coin() ? below(4) : 0;
    a.spans = spans.data();
    const std::int64_t row = a.heads * a.width, count = a.rows * row;
    // q, k and v as parts of one projection, the gradient of the output by itself.
    const auto qkv = tensor(3 * count, dtype), grad_out = tensor(count, dtype),
               out = tensor(count, dtype), grad_q = tensor(count, dtype),
               grad_k = tensor(count, dtype), grad_v = tensor(count, dtype);
    const std::int64_t bytes = dtype == DType::float32 ? 4 : 2;
    const auto part = [&](std::int64_t i) {
        return AttentionRows{qkv.get() + i * row * bytes, 3 * row, a.width};
    };
    a.q = part(0);
    a.k = part(1);
    a.v = part(2);
    a.left = bound();
    a.right = bound();
    a.chunk = coin() ? 0 : one_of({1, 7, 40});
    a.left_chunks = coin() ? -1 : below(3);
    a.block = one_of({16, 32, 64, 128});
    const Mask mask(a.longest / a.block + 1);
    if (coin()) {
        a.row_offsets = mask.offsets.data();
        a.column_ids = mask.ids.data();
    }
    const std::unique_ptr<bool[]> head_mask(new bool[a.heads]);
    for (std::int64_t i = 0; i < a.heads; ++i) head_mask[i] = below(4) > 0;
    a.head_mask = coin() ? head_mask.get() : nullptr;
    a.reach = one_of({0, 1, 5, 64, 310});
    const std::int64_t distances = (2 * a.reach + 1) * row;
    const auto rel_pos = tensor(distances, dtype), content = tensor(row, dtype),
               position = tensor(row, dtype), grad_rel_pos = tensor(distances, dtype),
               grad_content = tensor(row, dtype), grad_position = tensor(row, dtype);
    const bool relative = coin(), biased = coin();
    if (relative) a.rel_pos = {rel_pos.get(), row, a.width};
    a.content_bias = biased ? content.get() : nullptr;
    a.position_bias = biased && relative ? position.get() : nullptr;
    a.p = coin() ? 0.0 : 0.3;
    a.seed = random_bits();
    a.scale = 0.3;

    const auto lse = floats(a.heads * a.rows);
    const BlockAttentionForward forward{a, out.get(), lse.get()};
    {
        const Scratch scratch(kernels::block_attention_forward_scratch(forward, workers));
        kernels::block_attention_forward(forward, {scratch.get(), workers}, parallel);
    }
    record(out.get(), count, dtype);
    const BlockAttentionBackward backward{a,
                                          {grad_out.get(), row, a.width},
                                          {out.get(), row, a.width},
                                          lse.get(),
                                          grad_q.get(),
                                          grad_k.get(),
                                          grad_v.get(),
                                          relative ? grad_rel_pos.get() : nullptr,
                                          biased ? grad_content.get() : nullptr,
                                          biased && relative ? grad_position.get() : nullptr};
    const Scratch scratch(kernels::block_attention_backward_scratch(backward, workers));
    kernels::block_attention_backward(backward, {scratch.get(), workers}, parallel);
    for (const auto* gradient : {&grad_q, &grad_k, &grad_v}) record(gradient->get(), count, dtype);
    record(grad_rel_pos.get(), distances, dtype);
    record(grad_content.get(), row, dtype);
    record(grad_position.get(), row, dtype);
}

}  // namespace dmao::fuzzing
