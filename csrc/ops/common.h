// What every operation of csrc/ops needs from PyTorch, through its stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "dmao/parallel.h"
#include "dmao/types.h"
#include "name.h"

namespace dmao {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws what Python sees as RuntimeError. (STD_TORCH_CHECK would put this file's path into the
// message.)
template <class... Parts>
void check(bool condition, const Parts&... parts) {
    if (condition) return;
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

// Dense, on the CPU and of this dtype: what a kernel may read through a pointer.
inline void check_tensor(const char* op, const std::string& argument, const Tensor& tensor,
                         ScalarType dtype) {
    check(tensor.is_cpu(), op, ": ", argument, " must be a CPU tensor");
    check(tensor.scalar_type() == dtype, op, ": ", argument, " must be ",
          torch::headeronly::toString(dtype), ", got ",
          torch::headeronly::toString(tensor.scalar_type()));
    check(tensor.is_contiguous(), op, ": ", argument, " must be contiguous");
}

// A list of numbers that the host reads, as it is or as a dense copy.
inline Tensor dense_list(const char* op, const std::string& argument, const Tensor& given,
                         ScalarType dtype) {
    const Tensor dense = torch::stable::contiguous(given);
    check_tensor(op, argument, dense, dtype);
    check(dense.dim() == 1, op, ": ", argument, " must have one dimension, got ", dense.dim());
    return dense;
}

// float32 or bfloat16, as the kernels name them.
inline DType float_dtype(const char* op, const std::string& argument, const Tensor& tensor) {
    const ScalarType dtype = tensor.scalar_type();
    check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, op, ": ", argument,
          " must be float32 or bfloat16, got ", torch::headeronly::toString(dtype));
    check_tensor(op, argument, tensor, dtype);
    return dtype == ScalarType::Float ? DType::float32 : DType::bfloat16;
}

inline Activation parse_activation(const char* op, const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "relu") return Activation::relu;
    if (name == "gelu") return Activation::gelu;
    throw std::runtime_error(std::string(op) + ": activation must be silu, relu or gelu, got '" +
                             name + "'");
}

// PyTorch's own thread pool, as the interface that kernels take.
inline ParallelFor torch_parallel() {
    return ParallelFor(
        [](std::int64_t count, std::int64_t grain, ParallelFor::Body body, void* context) {
            torch::stable::parallel_for(0, count, grain, [=](std::int64_t begin, std::int64_t end) {
                body(begin, end, context);
            });
        });
}

}  // namespace dmao
