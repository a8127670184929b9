// What the operations of linear layers have in common: tensors as matrices of one type on one
// device, memory that launches share.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "../linear.h"
#include "common.cuh"
#include "linear_launch.cuh"

namespace dmao {

using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<std::int64_t>;

// A size or a count of rows, with room for the last tile.
inline int small_size(const char* op, const char* name, std::int64_t size) {
    check(size <= std::numeric_limits<std::int32_t>::max() - 1024, op, ": ", name,
          " is too large: ", size);
    return static_cast<int>(size);
}

// Rows of `like`'s dtype on its device.
inline TensorRows rows_beside(const char* op, const char* name, const Tensor& given,
                              const Tensor& like) {
    check_beside(op, name, given, like, like.scalar_type());
    return TensorRows(op, name, given);
}

template <class E>
Rows<E> view_rows(const char* op, const char* name, const TensorRows& rows) {
    return {static_cast<const E*>(rows.tensor.const_data_ptr()), rows.stride,
            small_size(op, name, rows.rows), small_size(op, name, rows.width)};
}

// A dense vector or matrix of that shape, aligned to 16 bytes.
inline OptionalTensor dense_beside(const char* op, const char* name, const OptionalTensor& given,
                                   const Tensor& like, ScalarType dtype, const Shape& shape) {
    if (!given.has_value()) return std::nullopt;
    check_beside(op, name, *given, like, dtype);
    bool same = given->dim() == static_cast<std::int64_t>(shape.size());
    for (std::size_t i = 0; same && i < shape.size(); ++i) {
        same = given->size(static_cast<std::int64_t>(i)) == shape[i];
    }
    check(same, op, ": ", name, " has the wrong shape");
    const Tensor dense = torch::stable::contiguous(*given);
    const auto address = reinterpret_cast<std::uintptr_t>(dense.const_data_ptr());
    return address % 16 == 0 ? dense : torch::stable::clone(dense);
}

template <class T>
const T* pointer(const OptionalTensor& tensor) {
    return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

// A gradient, empty unless it is wanted; `partly`: what is not written is zero.
inline Tensor gradient(const Tensor& like, bool wanted, const Shape& shape, bool partly = false) {
    if (!wanted) return torch::stable::new_empty(like, Shape{0});
    return partly ? torch::stable::new_zeros(like, shape) : torch::stable::new_empty(like, shape);
}
template <class E>
E* target(const Tensor& tensor, bool wanted) {
    return wanted ? static_cast<E*>(tensor.mutable_data_ptr()) : nullptr;
}

// work(run) on the device of a tensor, with the memory that it takes.
template <class Work>
void run_on(const Tensor& tensor, const Work& work) {
    const OnDevice device(tensor);
    LinearRun counting(device.gpu);
    work(counting);
    const Tensor memory =
        torch::stable::new_empty(tensor, Shape{counting.bytes()}, ScalarType::Byte);
    LinearRun run(device.gpu, memory.mutable_data_ptr());
    work(run);
}

}  // namespace dmao
