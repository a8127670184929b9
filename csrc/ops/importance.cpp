// dmao::importance_ on the CPU key: checks, the cut into chunks, the sums over chunks, the moving
// average.
#include "dmao/importance.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common.h"

namespace dmao {
namespace {

constexpr const char* kOp = "importance_";
// Elements of one chunk. Fixed, so that sums do not depend on the number of threads; large against
// the cost of handing out a chunk, small enough to balance two threads on a small model.
constexpr std::int64_t kChunk = 1 << 16;

struct Segment {
    std::int64_t tensor, repeats, components, run, first;
};

Metric parse_metric(const std::string& name) {
    if (name == "taylor") return Metric::taylor;
    if (name == "gradient") return Metric::gradient;
    if (name == "magnitude") return Metric::magnitude;
    if (name == "signed") return Metric::signed_taylor;
    throw std::runtime_error(
        "importance_: metric must be taylor, gradient, magnitude or signed, got '" + name + "'");
}

// What is asked of one segment: that it lies inside its tensors and inside ema. Products that
// overflow fail the first test, because each factor is bounded by numel before it is multiplied.
void check_segment(std::int64_t row, const Segment& s, const std::vector<Tensor>& weights,
                   std::int64_t components) {
    const std::int64_t tensors = static_cast<std::int64_t>(weights.size());
    check(s.tensor >= 0 && s.tensor < tensors, kOp, ": segments[", row, "] names tensor ", s.tensor,
          " of ", tensors);
    check(s.repeats >= 0 && s.components >= 0 && s.run >= 0, kOp, ": segments[", row,
          "] has a negative repeats, components or run");
    const std::int64_t numel = weights[s.tensor].numel();
    const bool empty = s.repeats == 0 || s.components == 0 || s.run == 0;
    const bool fits = empty ? numel == 0
                            : s.repeats <= numel && s.components <= numel / s.repeats &&
                                  s.run == numel / s.repeats / s.components &&
                                  s.repeats * s.components * s.run == numel;
    check(fits, kOp, ": segments[", row, "] is ", s.repeats, " x ", s.components, " x ", s.run,
          ", but weights[", s.tensor, "] has ", numel, " elements");
    check(s.first >= 0 && s.first <= components && s.components <= components - s.first, kOp,
          ": segments[", row, "] holds components ", s.first, " to ", s.first + s.components - 1,
          ", but ema has ", components);
}

// A chunk's place in the partial sums, and the component that its first one belongs to.
struct Partial {
    std::int64_t offset, count, component;
};

class Chunks {
  public:
    void add(const Segment& s, const ImportanceChunk& tensor) {
        const std::int64_t row_length = s.components * s.run;
        const std::int64_t rows = row_length < kChunk ? kChunk / row_length : 1;
        const std::int64_t columns = row_length < kChunk ? row_length : kChunk;
        for (std::int64_t row = 0; row < s.repeats; row += rows) {
            for (std::int64_t column = 0; column < row_length; column += columns) {
                ImportanceChunk chunk = tensor;
                chunk.row_length = row_length;
                chunk.run = s.run;
                chunk.row_begin = row;
                chunk.row_end = std::min(row + rows, s.repeats);
                chunk.column_begin = column;
                chunk.column_end = std::min(column + columns, row_length);
                const std::int64_t first = column / s.run;
                const std::int64_t count = (chunk.column_end - 1) / s.run - first + 1;
                chunks_.push_back(chunk);
                partials_.push_back({total_, count, s.first + first});
                total_ += count;
            }
        }
    }

    // Sum per component, in the order of the chunks; NaN for a component that no chunk touches (its
    // mean is then not finite, so that it keeps its average).
    std::vector<double> sums(Metric metric, std::int64_t components) {
        const auto partial = std::make_unique_for_overwrite<double[]>(total_);
        for (std::size_t i = 0; i < chunks_.size(); ++i)
            chunks_[i].sums = partial.get() + partials_[i].offset;
        const ImportanceProblem problem{chunks_.data(), static_cast<std::int64_t>(chunks_.size()),
                                        metric};
        DMAO_CPU_KERNEL(importance)(problem, torch_parallel());

        std::vector<double> sums(components, 0.0);
        std::vector<bool> touched(components, false);
        for (const Partial& p : partials_) {
            for (std::int64_t i = 0; i < p.count; ++i) {
                sums[p.component + i] += partial[p.offset + i];
                touched[p.component + i] = true;
            }
        }
        for (std::int64_t i = 0; i < components; ++i) {
            if (!touched[i]) sums[i] = std::nan("");
        }
        return sums;
    }

  private:
    std::vector<ImportanceChunk> chunks_;
    std::vector<Partial> partials_;
    std::int64_t total_ = 0;
};

void importance_(const Tensor& ema, const std::vector<Tensor>& weights,
                 const std::vector<Tensor>& grads, const Tensor& segments,
                 const Tensor& inverse_count, const std::string& metric_name, double beta) {
    check_tensor(kOp, "ema", ema, ScalarType::Float);
    check_tensor(kOp, "inverse_count", inverse_count, ScalarType::Float);
    check_tensor(kOp, "segments", segments, ScalarType::Long);
    check(segments.dim() == 2 && segments.size(1) == 5, kOp, ": segments must be [n, 5]");
    check(weights.size() == grads.size(), kOp, ": got ", weights.size(), " weights but ",
          grads.size(), " grads");
    const std::int64_t components = ema.numel();
    check(inverse_count.numel() == components, kOp, ": inverse_count must have ", components,
          " elements, got ", inverse_count.numel());
    const Metric metric = parse_metric(metric_name);

    Chunks chunks;
    const std::int64_t* rows = segments.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < segments.size(0); ++i, rows += 5) {
        const Segment s{rows[0], rows[1], rows[2], rows[3], rows[4]};
        check_segment(i, s, weights, components);
        const Tensor& weight = weights[s.tensor];
        const Tensor& grad = grads[s.tensor];
        if (weight.numel() == 0 || (grad.numel() == 0 && metric != Metric::magnitude)) continue;
        ImportanceChunk tensor{};
        tensor.weight_dtype = float_dtype(kOp, "weights[" + std::to_string(s.tensor) + "]", weight);
        tensor.weight = weight.const_data_ptr();
        if (metric != Metric::magnitude) {
            check(grad.numel() == weight.numel(), kOp, ": grads[", s.tensor, "] has ", grad.numel(),
                  " elements, but its weight has ", weight.numel());
            tensor.grad_dtype = float_dtype(kOp, "grads[" + std::to_string(s.tensor) + "]", grad);
            tensor.grad = grad.const_data_ptr();
        }
        chunks.add(s, tensor);
    }

    const std::vector<double> sums = chunks.sums(metric, components);
    float* average = ema.mutable_data_ptr<float>();
    const float* inverse = inverse_count.const_data_ptr<float>();
    for (std::int64_t i = 0; i < components; ++i) {
        const double mean = sums[i] * inverse[i];
        if (std::isfinite(static_cast<float>(mean))) {
            average[i] = static_cast<float>(beta * average[i] + (1.0 - beta) * mean);
        }
    }
}

}  // namespace
}  // namespace dmao

STABLE_TORCH_LIBRARY_IMPL(dmao, CPU, m) { m.impl("importance_", TORCH_BOX(&dmao::importance_)); }
