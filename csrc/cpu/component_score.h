// What a component's score is a sum of, and the sums of one chunk with nothing else done on the
// way.
#pragma once

#include "component_sums.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

template <Metric metric>
Vec entry(Vec weight, Vec grad) {
    if constexpr (metric == Metric::gradient) return abs(grad);
    if constexpr (metric == Metric::magnitude) return abs(weight);
    if constexpr (metric == Metric::signed_taylor) return weight * grad;
    return abs(weight * grad);
}

template <Metric metric, class W, class G>
struct ProductEntries {
    const W* weight;
    const G* grad;

    template <class... Count>
    Vec operator()(std::int64_t i, Count... count) const {
        return entry<metric>(load(weight + i, count...), load(grad + i, count...));
    }
};

template <class T>
struct AbsoluteEntries {
    const T* values;

    template <class... Count>
    Vec operator()(std::int64_t i, Count... count) const {
        return abs(load(values + i, count...));
    }
};

template <class W, class G>
void score_product(const ImportanceChunk& chunk, Metric metric) {
    const W* weight = static_cast<const W*>(chunk.weight);
    const G* grad = static_cast<const G*>(chunk.grad);
    if (metric == Metric::signed_taylor) {
        sum_chunk(chunk, ProductEntries<Metric::signed_taylor, W, G>{weight, grad});
    } else {
        sum_chunk(chunk, ProductEntries<Metric::taylor, W, G>{weight, grad});
    }
}

void score_absolute(const ImportanceChunk& chunk, const void* values, DType dtype) {
    if (dtype == DType::float32) {
        sum_chunk(chunk, AbsoluteEntries<float>{static_cast<const float*>(values)});
    } else {
        sum_chunk(chunk, AbsoluteEntries<bfloat16>{static_cast<const bfloat16*>(values)});
    }
}

void score(const ImportanceChunk& chunk, Metric metric) {
    const bool float_weight = chunk.weight_dtype == DType::float32;
    const bool float_grad = chunk.grad_dtype == DType::float32;
    if (metric == Metric::gradient) {
        score_absolute(chunk, chunk.grad, chunk.grad_dtype);
    } else if (metric == Metric::magnitude) {
        score_absolute(chunk, chunk.weight, chunk.weight_dtype);
    } else if (float_weight && float_grad) {
        score_product<float, float>(chunk, metric);
    } else if (float_weight) {
        score_product<float, bfloat16>(chunk, metric);
    } else if (float_grad) {
        score_product<bfloat16, float>(chunk, metric);
    } else {
        score_product<bfloat16, bfloat16>(chunk, metric);
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
