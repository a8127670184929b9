// dmao::block_attention and its backward on the CPU key: checks, strides, allocation, scratch.
#include "dmao/block_attention.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"
#include "scratch.h"

namespace dmao {
namespace {

constexpr const char* kOp = "block_attention";

// The tensor itself if its last axis is contiguous.
Tensor with_contiguous_rows(const Tensor& tensor) {
    const std::int64_t last = tensor.dim() - 1;
    return last >= 0 && (tensor.stride(last) == 1 || tensor.size(last) <= 1)
               ? tensor
               : torch::stable::contiguous(tensor);
}

// The inputs of both directions, checked, and the problem that points into them.
struct Inputs {
    Tensor q, k, v, spans;
    std::optional<Tensor> row_offsets, column_ids, head_mask, rel_pos, content_bias, position_bias;
    BlockAttention attention{};

    Inputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& utterances,
           std::int64_t frames, const std::optional<Tensor>& row_offsets_,
           const std::optional<Tensor>& column_ids_, std::int64_t block, std::int64_t left,
           std::int64_t right, std::int64_t chunk, std::int64_t left_chunks,
           const std::optional<Tensor>& head_mask_, const std::optional<Tensor>& rel_pos_,
           const std::optional<Tensor>& content_bias_, const std::optional<Tensor>& position_bias_,
           double p, const std::optional<Tensor>& seed, double scale)
        : q(with_contiguous_rows(q_)),
          k(with_contiguous_rows(k_)),
          v(with_contiguous_rows(v_)),
          spans(torch::stable::contiguous(utterances)) {
        BlockAttention& a = attention;
        check(q.dim() == 3, kOp, ": q must be [N, H, D]");
        const ScalarType dtype = q.scalar_type();
        check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, kOp,
              ": q must be float32 or bfloat16, got ", torch::headeronly::toString(dtype));
        a.dtype = dtype == ScalarType::Float ? DType::float32 : DType::bfloat16;
        a.rows = q.size(0);
        a.heads = q.size(1);
        a.width = q.size(2);
        check(a.rows <= std::numeric_limits<std::int32_t>::max() / 2, kOp,
              ": too many rows: ", a.rows);
        a.q = rows("q", q, a.rows);
        a.k = rows("k", k, a.rows);
        a.v = rows("v", v, a.rows);
        read_spans(frames);
        // Farther than any key is as good as unbounded, and cannot overflow.
        a.left = std::min(left, a.rows);
        a.right = std::min(right, a.rows);
        a.chunk = std::min(std::max<std::int64_t>(chunk, 0), a.rows);
        a.left_chunks = std::min(left_chunks, a.rows);
        check(row_offsets_.has_value() == column_ids_.has_value(), kOp,
              ": row_offsets and column_ids must be given together");
        if (column_ids_.has_value()) read_mask(*row_offsets_, *column_ids_, block);
        if (head_mask_.has_value()) {
            head_mask = torch::stable::contiguous(*head_mask_);
            check_tensor(kOp, "head_mask", *head_mask, ScalarType::Bool);
            check(head_mask->dim() == 1 && head_mask->size(0) == a.heads, kOp,
                  ": head_mask must be [", a.heads, "]");
            a.head_mask = head_mask->const_data_ptr<bool>();
        }
        if (rel_pos_.has_value()) {
            rel_pos = with_contiguous_rows(*rel_pos_);
            check(rel_pos->dim() == 3 && rel_pos->size(0) % 2 == 1, kOp,
                  ": rel_pos must be [2 R + 1, H, D]");
            a.rel_pos = rows("rel_pos", *rel_pos, rel_pos->size(0));
            a.reach = rel_pos->size(0) / 2;
        }
        a.content_bias = bias("content_bias", content_bias_, content_bias);
        a.position_bias = bias("position_bias", position_bias_, position_bias);
        check(a.position_bias == nullptr || rel_pos.has_value(), kOp,
              ": position_bias must be None without rel_pos");
        check(p >= 0.0 && p < 1.0, kOp, ": p must be in [0, 1), got ", p);
        a.p = p;
        if (p > 0.0) {
            check(seed.has_value(), kOp, ": seed is needed when p > 0");
            check_tensor(kOp, "seed", *seed, ScalarType::Long);
            check(seed->numel() == 1, kOp, ": seed must have one element, got ", seed->numel());
            a.seed = static_cast<std::uint64_t>(*seed->const_data_ptr<std::int64_t>());
        }
        a.scale = scale;
    }

    AttentionRows rows(const char* name, const Tensor& tensor, std::int64_t count) const {
        check(tensor.is_cpu() && tensor.scalar_type() == q.scalar_type(), kOp, ": ", name,
              " must be a CPU tensor of ", torch::headeronly::toString(q.scalar_type()));
        check(tensor.dim() == 3 && tensor.size(0) == count && tensor.size(1) == q.size(1) &&
                  tensor.size(2) == q.size(2),
              kOp, ": ", name, " must be [", count, ", ", q.size(1), ", ", q.size(2), "]");
        return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
    }

    const void* bias(const char* name, const std::optional<Tensor>& given,
                     std::optional<Tensor>& kept) const {
        if (!given.has_value()) return nullptr;
        kept = torch::stable::contiguous(*given);
        check_tensor(kOp, name, *kept, q.scalar_type());
        check(kept->dim() == 2 && kept->size(0) == q.size(1) && kept->size(1) == q.size(2), kOp,
              ": ", name, " must be [", q.size(1), ", ", q.size(2), "]");
        return kept->const_data_ptr();
    }

    void read_spans(std::int64_t frames) {
        check_tensor(kOp, "utterances", spans, ScalarType::Int);
        check(spans.dim() == 2 && spans.size(1) == 2, kOp, ": utterances must be [B, 2]");
        attention.utterances = spans.size(0);
        attention.spans = spans.const_data_ptr<std::int32_t>();
        // Packed rows are all of some utterance. Padded ones are more than the frames of one, or
        // are those of a single utterance, as which nobody hands over packed ones.
        const bool packed = frames == attention.rows && frames > 0 && attention.utterances != 1;
        std::int64_t end = 0;
        for (std::int64_t i = 0; i < attention.utterances; ++i) {
            const std::int64_t first = attention.spans[2 * i], length = attention.spans[2 * i + 1];
            check(length >= 0 && length <= frames, kOp, ": the length of utterance ", i,
                  " must be in [0, ", frames, "], got ", length);
            check(!packed || first <= end, kOp, ": offsets must begin at 0, got ", first);
            check(first >= end, kOp, ": utterance ", i, " begins at row ", first,
                  ", before the end of the one before it, ", end);
            end = first + length;
            check(end <= attention.rows, kOp, ": utterance ", i, " ends at row ", end, " of ",
                  attention.rows);
            attention.longest = std::max(attention.longest, length);
        }
        check(!packed || end == attention.rows, kOp, ": offsets must end at the ", attention.rows,
              " rows of q, got ", end);
        // The empty one behind a single utterance is no work, and would count where work is cut.
        if (packed && attention.utterances == 2 && attention.spans[3] == 0)
            attention.utterances = 1;
    }

    void read_mask(const Tensor& offsets, const Tensor& ids, std::int64_t block) {
        row_offsets = torch::stable::contiguous(offsets);
        column_ids = torch::stable::contiguous(ids);
        check_tensor(kOp, "row_offsets", *row_offsets, ScalarType::Int);
        check_tensor(kOp, "column_ids", *column_ids, ScalarType::Int);
        check(row_offsets->dim() == 1 && row_offsets->size(0) >= 1 && column_ids->dim() == 1, kOp,
              ": row_offsets and column_ids must have one dimension");
        check(block >= 16 && block <= 128 && block % 16 == 0, kOp,
              ": block must be a multiple of 16 in [16, 128], got ", block);
        const std::int64_t grid = row_offsets->size(0) - 1, count = column_ids->size(0);
        check(attention.longest <= grid * block, kOp, ": block_mask covers ", grid * block,
              " frames, but an utterance has ", attention.longest);
        const std::int32_t* begin = row_offsets->const_data_ptr<std::int32_t>();
        const std::int32_t* column = column_ids->const_data_ptr<std::int32_t>();
        check(begin[0] == 0 && begin[grid] == count, kOp, ": row_offsets must go from 0 to ",
              count);
        for (std::int64_t row = 0; row < grid; ++row) {
            check(begin[row] <= begin[row + 1], kOp, ": row_offsets must not decrease");
        }
        for (std::int64_t row = 0; row < grid; ++row) {
            std::int64_t last = -1;
            for (std::int64_t i = begin[row]; i < begin[row + 1]; ++i) {
                check(column[i] > last && column[i] < grid, kOp,
                      ": column_ids must ascend within a row, below ", grid, ", got ", column[i],
                      " after ", last);
                last = column[i];
            }
        }
        attention.block = block;
        attention.row_offsets = begin;
        attention.column_ids = column;
    }

    Tensor like(const std::optional<Tensor>& input) const {
        std::vector<std::int64_t> sizes{0};
        if (input.has_value()) {
            sizes.clear();
            for (std::int64_t i = 0; i < input->dim(); ++i) sizes.push_back(input->size(i));
        }
        return torch::stable::new_empty(q, sizes);
    }
};

void* data_or_null(Tensor& tensor, bool present) {
    return present ? tensor.mutable_data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor> block_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& utterances,
    std::int64_t frames, const std::optional<Tensor>& row_offsets,
    const std::optional<Tensor>& column_ids, const std::optional<Tensor>&,
    const std::optional<Tensor>&, std::int64_t block, std::int64_t left, std::int64_t right,
    std::int64_t chunk, std::int64_t left_chunks, const std::optional<Tensor>& head_mask,
    const std::optional<Tensor>& rel_pos, const std::optional<Tensor>& content_bias,
    const std::optional<Tensor>& position_bias, double p, const std::optional<Tensor>& seed,
    double scale) {
    const Inputs in(q, k, v, utterances, frames, row_offsets, column_ids, block, left, right, chunk,
                    left_chunks, head_mask, rel_pos, content_bias, position_bias, p, seed, scale);
    const BlockAttention& a = in.attention;
    Tensor out = in.like(in.q);
    Tensor lse = torch::stable::new_empty(in.q, std::vector<std::int64_t>{a.heads, a.rows},
                                          ScalarType::Float);
    if (out.numel() == 0) return {out, lse};
    const BlockAttentionForward problem{a, out.mutable_data_ptr(), lse.mutable_data_ptr<float>()};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(block_attention_forward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(block_attention_forward)(problem, {scratch, workers}, torch_parallel());
    return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& utterances, std::int64_t frames, const std::optional<Tensor>& row_offsets,
    const std::optional<Tensor>& column_ids, const std::optional<Tensor>&,
    const std::optional<Tensor>&, std::int64_t block, std::int64_t left, std::int64_t right,
    std::int64_t chunk, std::int64_t left_chunks, const std::optional<Tensor>& head_mask,
    const std::optional<Tensor>& rel_pos, const std::optional<Tensor>& content_bias,
    const std::optional<Tensor>& position_bias, double p, const std::optional<Tensor>& seed,
    double scale, const Tensor& out, const Tensor& lse) {
    const Inputs in(q, k, v, utterances, frames, row_offsets, column_ids, block, left, right, chunk,
                    left_chunks, head_mask, rel_pos, content_bias, position_bias, p, seed, scale);
    const BlockAttention& a = in.attention;
    const Tensor grad = with_contiguous_rows(grad_out), kept = with_contiguous_rows(out);
    check_tensor(kOp, "lse", lse, ScalarType::Float);
    check(lse.numel() == a.heads * a.rows, kOp, ": lse must be [", a.heads, ", ", a.rows, "]");
    Tensor grad_q = in.like(in.q), grad_k = in.like(in.k), grad_v = in.like(in.v);
    Tensor grad_rel_pos = in.like(in.rel_pos), grad_content_bias = in.like(in.content_bias),
           grad_position_bias = in.like(in.position_bias);
    const BlockAttentionBackward problem{
        a,
        in.rows("grad_out", grad, a.rows),
        in.rows("out", kept, a.rows),
        lse.const_data_ptr<float>(),
        grad_q.mutable_data_ptr(),
        grad_k.mutable_data_ptr(),
        grad_v.mutable_data_ptr(),
        data_or_null(grad_rel_pos, in.rel_pos.has_value()),
        data_or_null(grad_content_bias, in.content_bias.has_value()),
        data_or_null(grad_position_bias, in.position_bias.has_value())};
    const std::int64_t workers = torch::stable::get_num_threads();
    float* scratch =
        thread_scratch(DMAO_CPU_KERNEL(block_attention_backward_scratch)(problem, workers));
    DMAO_CPU_KERNEL(block_attention_backward)(problem, {scratch, workers}, torch_parallel());
    return {grad_q, grad_k, grad_v, grad_rel_pos, grad_content_bias, grad_position_bias};
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) {
    m.impl("block_attention", TORCH_BOX(&dmao::block_attention));
    m.impl("block_attention_backward", TORCH_BOX(&dmao::block_attention_backward));
}
