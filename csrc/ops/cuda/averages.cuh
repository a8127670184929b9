// What scoring operations on GPUs share: checks of what is scored, and of what it is averaged into.
#pragma once

#include "../segments.h"
#include "common.cuh"
#include "element_types.h"
#include "scores_launch.cuh"

namespace dmao {

inline ElementType element_type(const char* op, const std::string& argument, const Tensor& tensor) {
    return with_elements(op, argument, tensor, [](auto e) { return type_of<decltype(e)>; });
}

// Dense, on the device of `like`, and of a type that kernels know: which one is returned.
inline ElementType check_readable(const char* op, const std::string& argument, const Tensor& tensor,
                                  const Tensor& like) {
    check_beside(op, argument, tensor, like, tensor.scalar_type());
    check(tensor.is_contiguous(), op, ": ", argument, " must be contiguous");
    return element_type(op, argument, tensor);
}

inline ScoreAverages check_averages(const char* op, const Tensor& ema, const Tensor& inverse_count,
                                    double beta) {
    check_beside(op, "ema", ema, ema, ScalarType::Float);
    check_beside(op, "inverse_count", inverse_count, ema, ScalarType::Float);
    check(ema.is_contiguous() && inverse_count.is_contiguous(), op,
          ": ema and inverse_count must be contiguous");
    check(inverse_count.numel() == ema.numel(), op, ": inverse_count must have ", ema.numel(),
          " elements, got ", inverse_count.numel());
    return {ema.mutable_data_ptr<float>(), inverse_count.const_data_ptr<float>(), ema.numel(),
            beta};
}

}  // namespace dmao
