// dmao_cuda::block_attention and its backward: checks, alignment, allocation.
#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "block_attention_launch.cuh"
#include "common.cuh"

namespace dmao {
namespace {

constexpr const char* kOp = "block_attention";
constexpr std::int64_t kMostRows = 1 << 30;  // rows and their tiles are counted in 32 bits

// The tensor itself, or a copy whose rows of heads begin at multiples of 16 bytes, as kernels read
// them; what is behind the width is never read.
Tensor with_aligned_rows(const Tensor& tensor) {
    const std::int64_t per_chunk = kChunkBytes / tensor.element_size(), width = tensor.size(2);
    const bool dense = tensor.stride(2) == 1 || width <= 1;
    if (dense && tensor.stride(0) % per_chunk == 0 && tensor.stride(1) % per_chunk == 0 &&
        reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % kChunkBytes == 0) {
        return tensor;
    }
    const std::int64_t padded = (width + per_chunk - 1) / per_chunk * per_chunk;
    Tensor room = torch::stable::new_empty(
        tensor, std::vector<std::int64_t>{tensor.size(0), tensor.size(1), padded});
    Tensor copy = torch::stable::narrow(room, 2, 0, width);
    torch::stable::copy_(copy, tensor);
    return copy;
}

// The inputs of both directions, checked, and the problem that points into them.
struct Inputs {
    Tensor q, k, v, spans;
    std::optional<Tensor> row_offsets, column_ids, column_offsets, row_ids, head_mask, seed,
        rel_pos, content_bias, position_bias;
    Attention attention{};

    Inputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& utterances,
           std::int64_t frames, const std::optional<Tensor>& row_offsets_,
           const std::optional<Tensor>& column_ids_, const std::optional<Tensor>& column_offsets_,
           const std::optional<Tensor>& row_ids_, std::int64_t block, std::int64_t left,
           std::int64_t right, std::int64_t chunk, std::int64_t left_chunks,
           const std::optional<Tensor>& head_mask_, const std::optional<Tensor>& rel_pos_,
           const std::optional<Tensor>& content_bias_, const std::optional<Tensor>& position_bias_,
           double p, const std::optional<Tensor>& seed_, double scale) {
        Attention& a = attention;
        check(q_.dim() == 3 && is_here(q_), kOp, ": q must be [N, H, D], on this device");
        check(q_.size(0) <= kMostRows && q_.size(1) <= 65535, kOp, ": too many rows or heads");
        check(q_.size(2) <= 256, kOp, ": D must be at most 256, got ", q_.size(2));
        a.rows = static_cast<int>(q_.size(0));
        a.heads = static_cast<int>(q_.size(1));
        a.width = static_cast<int>(q_.size(2));
        q = read_rows("q", q_, q_, a.rows, a.q);
        k = read_rows("k", k_, q_, a.rows, a.k);
        v = read_rows("v", v_, q_, a.rows, a.v);
        spans = torch::stable::contiguous(utterances);
        check_beside(kOp, "utterances", spans, q, ScalarType::Int);
        check(spans.dim() == 2 && spans.size(1) == 2 && spans.size(0) < kMostRows, kOp,
              ": utterances must be [B, 2]");
        a.spans = spans.const_data_ptr<std::int32_t>();
        a.utterances = static_cast<int>(spans.size(0));
        a.frames = static_cast<int>(std::clamp<std::int64_t>(frames, 0, a.rows));
        set_bounds(a, left, right, chunk, left_chunks);
        if (row_offsets_.has_value()) {
            check(block >= 16 && block <= 128 && block % 16 == 0, kOp,
                  ": block must be a multiple of 16 in [16, 128], got ", block);
            a.block = static_cast<int>(block);
            read_lines("row_offsets", row_offsets_, row_offsets, column_ids_, column_ids,
                       a.key_lines);
            read_lines("column_offsets", column_offsets_, column_offsets, row_ids_, row_ids,
                       a.query_lines);
            check(row_offsets->numel() == column_offsets->numel() &&
                      column_ids->numel() == row_ids->numel(),
                  kOp, ": a mask must have as many rows as columns, and as many ids in both");
        }
        if (head_mask_.has_value()) {
            head_mask = torch::stable::contiguous(*head_mask_);
            check_beside(kOp, "head_mask", *head_mask, q, ScalarType::Bool);
            check(head_mask->dim() == 1 && head_mask->size(0) == a.heads, kOp,
                  ": head_mask must be [", a.heads, "]");
            a.head_mask = head_mask->const_data_ptr<bool>();
        }
        if (rel_pos_.has_value()) {
            check(rel_pos_->dim() == 3 && rel_pos_->size(0) % 2 == 1 &&
                      rel_pos_->size(0) <= kMostRows,
                  kOp, ": rel_pos must be [2 R + 1, H, D]");
            rel_pos = read_rows("rel_pos", *rel_pos_, q, rel_pos_->size(0), a.rel_pos);
            a.reach = static_cast<int>(rel_pos->size(0) / 2);
        }
        a.content_bias = read_bias("content_bias", content_bias_, content_bias);
        a.position_bias = read_bias("position_bias", position_bias_, position_bias);
        check(a.position_bias == nullptr || rel_pos.has_value(), kOp,
              ": position_bias must be None without rel_pos");
        check(p >= 0.0 && p < 1.0, kOp, ": p must be in [0, 1), got ", p);
        a.threshold = dropout_threshold(p);
        a.keep_factor = static_cast<float>(1 / (1 - p));
        if (a.threshold > 0) {
            check(seed_.has_value() && seed_->numel() == 1, kOp, ": seed must be int64 [1]");
            seed = *seed_;
            check_beside(kOp, "seed", *seed, q, ScalarType::Long);
            a.seed = seed->const_data_ptr<std::int64_t>();
        }
        a.scale = static_cast<float>(scale);
    }

    // Rows [count, heads, width] of a tensor, or of the copy that is returned.
    Tensor read_rows(const char* name, const Tensor& tensor, const Tensor& like, std::int64_t count,
                     AttentionRows& rows) const {
        check_beside(kOp, name, tensor, like, like.scalar_type());
        check(tensor.dim() == 3 && tensor.size(0) == count && tensor.size(1) == attention.heads &&
                  tensor.size(2) == attention.width,
              kOp, ": ", name, " must be [", count, ", ", attention.heads, ", ", attention.width,
              "]");
        const Tensor aligned = with_aligned_rows(tensor);
        rows = {aligned.const_data_ptr(), aligned.stride(0), aligned.stride(1)};
        return aligned;
    }

    const void* read_bias(const char* name, const std::optional<Tensor>& given,
                          std::optional<Tensor>& kept) const {
        if (!given.has_value()) return nullptr;
        kept = torch::stable::contiguous(*given);
        check_beside(kOp, name, *kept, q, q.scalar_type());
        check(kept->dim() == 2 && kept->size(0) == attention.heads &&
                  kept->size(1) == attention.width,
              kOp, ": ", name, " must be [", attention.heads, ", ", attention.width, "]");
        return kept->const_data_ptr();
    }

    void read_lines(const std::string& name, const std::optional<Tensor>& offsets,
                    std::optional<Tensor>& kept_offsets, const std::optional<Tensor>& ids,
                    std::optional<Tensor>& kept_ids, AttentionLines& lines) {
        check(offsets.has_value() && ids.has_value(), kOp,
              ": the tensors of a mask must be given together");
        kept_offsets = torch::stable::contiguous(*offsets);
        kept_ids = torch::stable::contiguous(*ids);
        check_beside(kOp, name, *kept_offsets, q, ScalarType::Int);
        check_beside(kOp, "the ids of " + name, *kept_ids, q, ScalarType::Int);
        const std::int64_t count = kept_ids->numel(), grid = kept_offsets->numel() - 1;
        check(grid >= 0 && grid <= kMostRows && count <= 2 * (kMostRows - 1), kOp, ": ", name,
              " must have one element more than the mask has blocks in a row");
        attention.mask_lines = static_cast<int>(grid);
        attention.mask_count = static_cast<int>(count);
        // An empty tensor's data is null, which stands for no mask: for a test of its own kernels
        // would need registers. What is given instead is not read.
        const Tensor& list = count > 0 ? *kept_ids : *kept_offsets;
        lines = {kept_offsets->const_data_ptr<std::int32_t>(), list.const_data_ptr<std::int32_t>()};
    }

    bool empty() const {
        return attention.rows == 0 || attention.heads == 0 || attention.width == 0 ||
               attention.utterances == 0;
    }

    // Of the shape of an input, or empty; zeros where nothing will be launched.
    Tensor result_like(const std::optional<Tensor>& input) const {
        std::vector<std::int64_t> sizes{0};
        if (input.has_value()) {
            sizes.clear();
            for (std::int64_t i = 0; i < input->dim(); ++i) sizes.push_back(input->size(i));
        }
        Tensor result = torch::stable::new_empty(q, sizes);
        if (empty()) torch::stable::zero_(result);
        return result;
    }
    Tensor floats(std::vector<std::int64_t> sizes) const {
        return torch::stable::new_empty(q, sizes, ScalarType::Float);
    }
};

template <class Launches>
void check_runs(const Launches& launches, const Attention& attention, bool backward) {
    const char* refusal = launches.refusal(attention, backward);
    check(refusal == nullptr, kOp, ": ", refusal == nullptr ? "" : refusal);
}

void* data_or_null(Tensor& tensor) {
    return tensor.numel() > 0 ? tensor.mutable_data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor> block_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& utterances,
    std::int64_t frames, const std::optional<Tensor>& row_offsets,
    const std::optional<Tensor>& column_ids, const std::optional<Tensor>& column_offsets,
    const std::optional<Tensor>& row_ids, std::int64_t block, std::int64_t left, std::int64_t right,
    std::int64_t chunk, std::int64_t left_chunks, const std::optional<Tensor>& head_mask,
    const std::optional<Tensor>& rel_pos, const std::optional<Tensor>& content_bias,
    const std::optional<Tensor>& position_bias, double p, const std::optional<Tensor>& seed,
    double scale) {
    const OnDevice here(q);
    const Inputs in(q, k, v, utterances, frames, row_offsets, column_ids, column_offsets, row_ids,
                    block, left, right, chunk, left_chunks, head_mask, rel_pos, content_bias,
                    position_bias, p, seed, scale);
    const Attention& a = in.attention;
    Tensor out = in.result_like(in.q), lse = in.floats({a.heads, a.rows});
    if (in.empty()) {
        torch::stable::zero_(lse);
        return {out, lse};
    }
    const AttentionForward problem{a, out.mutable_data_ptr(), lse.mutable_data_ptr<float>()};
    with_elements(kOp, "q", in.q, [&](auto element) {
        with_attention<decltype(element)>(here.gpu, a.width, [&](const auto& launches) {
            check_runs(launches, a, false);
            launches.run(problem);
        });
    });
    return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& utterances, std::int64_t frames, const std::optional<Tensor>& row_offsets,
    const std::optional<Tensor>& column_ids, const std::optional<Tensor>& column_offsets,
    const std::optional<Tensor>& row_ids, std::int64_t block, std::int64_t left, std::int64_t right,
    std::int64_t chunk, std::int64_t left_chunks, const std::optional<Tensor>& head_mask,
    const std::optional<Tensor>& rel_pos, const std::optional<Tensor>& content_bias,
    const std::optional<Tensor>& position_bias, double p, const std::optional<Tensor>& seed,
    double scale, const Tensor& out, const Tensor& lse) {
    const OnDevice here(q);
    const Inputs in(q, k, v, utterances, frames, row_offsets, column_ids, column_offsets, row_ids,
                    block, left, right, chunk, left_chunks, head_mask, rel_pos, content_bias,
                    position_bias, p, seed, scale);
    const Attention& a = in.attention;
    Tensor grad_q = in.result_like(in.q), grad_k = in.result_like(in.k),
           grad_v = in.result_like(in.v), grad_rel_pos = in.result_like(in.rel_pos),
           grad_content_bias = in.result_like(in.content_bias),
           grad_position_bias = in.result_like(in.position_bias);
    const auto results = [&] {
        return std::tuple(grad_q, grad_k, grad_v, grad_rel_pos, grad_content_bias,
                          grad_position_bias);
    };
    if (in.empty()) return results();
    AttentionBackward problem{};
    problem.attention = a;
    const Tensor gradients = in.read_rows("grad_out", grad_out, in.q, a.rows, problem.grad_out);
    check_beside(kOp, "out", out, in.q, in.q.scalar_type());
    check(out.is_contiguous() && out.numel() == in.q.numel(), kOp, ": out must be as q");
    problem.out = {out.const_data_ptr(), std::int64_t{a.heads} * a.width, a.width};
    check_beside(kOp, "lse", lse, in.q, ScalarType::Float);
    check(lse.is_contiguous() && lse.numel() == std::int64_t{a.heads} * a.rows, kOp,
          ": lse must be [", a.heads, ", ", a.rows, "]");
    problem.lse = lse.const_data_ptr<float>();
    problem.grad_q = grad_q.mutable_data_ptr();
    problem.grad_k = grad_k.mutable_data_ptr();
    problem.grad_v = grad_v.mutable_data_ptr();
    problem.grad_rel_pos = data_or_null(grad_rel_pos);
    problem.grad_content_bias = data_or_null(grad_content_bias);
    problem.grad_position_bias = data_or_null(grad_position_bias);
    with_elements(kOp, "q", in.q, [&](auto element) {
        with_attention<decltype(element)>(here.gpu, a.width, [&](const auto& launches) {
            check_runs(launches, a, true);
            const AttentionScratch sizes = launches.scratch(a);
            Tensor scratch = in.floats({sizes.total()});
            sizes.place(scratch.mutable_data_ptr<float>(), problem);
            launches.run(problem);
        });
    });
    return results();
}

}  // namespace
}  // namespace dmao

DMAO_CUDA_LIBRARY(m) {
    m.impl("block_attention", TORCH_BOX(&dmao::block_attention));
    m.impl("block_attention_backward", TORCH_BOX(&dmao::block_attention_backward));
}
