// What linear layers have in common: tensors as matrices, names of activations.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common.h"

namespace dmao {

// The shape of a tensor with another last axis.
inline std::vector<std::int64_t> leading_and(const Tensor& tensor, std::int64_t last) {
    std::vector<std::int64_t> sizes;
    for (std::int64_t i = 0; i + 1 < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
    sizes.push_back(last);
    return sizes;
}

// A tensor [..., width] as a matrix with contiguous rows: in place where its strides allow that.
struct TensorRows {
    Tensor tensor;
    std::int64_t rows, width, stride;

    TensorRows(const char* op, const char* name, const Tensor& given) : tensor(given) {
        check(tensor.dim() >= 1, op, ": ", name, " must have at least one dimension");
        width = tensor.size(tensor.dim() - 1);
        if (!walk_rows()) {
            tensor = torch::stable::contiguous(tensor);
            walk_rows();
        }
    }

  private:
    // Counts the rows. Whether they are contiguous and at equal distances.
    bool walk_rows() {
        const std::int64_t last = tensor.dim() - 1;
        rows = 1;
        stride = width;
        bool even = width <= 1 || tensor.stride(last) == 1;
        for (std::int64_t i = last - 1; i >= 0; --i) {
            if (tensor.size(i) == 1) continue;
            if (rows == 1) stride = tensor.stride(i);
            even = even && tensor.stride(i) == rows * stride;
            rows *= tensor.size(i);
        }
        return even;
    }
};

inline Activation parse_linear_activation(const char* op, const std::string& name) {
    if (name == "none") return Activation::none;
    if (name == "silu") return Activation::silu;
    if (name == "relu") return Activation::relu;
    if (name == "gelu") return Activation::gelu;
    check(name == "glu", op, ": activation must be none, silu, relu, gelu or glu, got '", name,
          "'");
    return Activation::glu;
}

}  // namespace dmao
