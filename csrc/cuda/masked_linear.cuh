// masked_linear: activations that are no part of a product. Eight columns a thread.
//
// Floor: 3 elements moved per element of a result.
#pragma once

#include "activation.cuh"
#include "linear_rows.cuh"

namespace dmao {

// Rows of which one is next to the other, `stride` elements apart.
template <class E>
__device__ __forceinline__ void load_columns(const E* row, int stride, int column, int end,
                                             float (&values)[kEight]) {
    const int count = end - column < kEight ? end - column : kEight;
    load_eight(row + column, count, count == kEight && stride % kEight == 0, values);
}
template <class E>
__device__ __forceinline__ void store_columns(E* row, int stride, int column, int end,
                                              const float (&values)[kEight]) {
    const int count = end - column < kEight ? end - column : kEight;
    store_eight(row + column, count, count == kEight && stride % kEight == 0, values);
}

// y = values * sigmoid(gates), `width` of each in a row of pre-activations.
template <class E>
__global__ void __launch_bounds__(kRowThreads)
    glu_kernel(const E* pre_activation, E* y, int rows, int width, Divisor eights) {
    const RowPlace place(eights);
    if (place.row >= rows) return;
    const E* row = pre_activation + static_cast<std::int64_t>(place.row) * 2 * width;
    float values[kEight], gates[kEight];
    load_columns(row, width, place.column, width, values);
    load_columns(row + width, width, place.column, width, gates);
#pragma unroll
    for (int i = 0; i < kEight; ++i) values[i] *= sigmoid(gates[i]);
    store_columns(y + static_cast<std::int64_t>(place.row) * width, width, place.column, width,
                  values);
}

// The gradient of the pre-activations, in rows of `stride`, a multiple of 8, filled up with zeros,
// from that of y, `width` columns.
template <class E>
__global__ void __launch_bounds__(kRowThreads)
    activation_gradient_kernel(Matrix<E> grad_y, const E* pre_activation, E* grad, int stride,
                               int rows, int width, Activation activation, Divisor eights) {
    const RowPlace place(eights);
    if (place.row >= rows) return;
    float g[kEight], h[kEight];
    load_columns(grad_y.values + static_cast<std::int64_t>(place.row) * grad_y.stride,
                 grad_y.stride, place.column, width, g);
    E* target = grad + static_cast<std::int64_t>(place.row) * stride;
    if (activation != Activation::glu) {
        load_columns(pre_activation + static_cast<std::int64_t>(place.row) * width, width,
                     place.column, width, h);
        replace_by_slope(activation, h);
#pragma unroll
        for (int i = 0; i < kEight; ++i) g[i] *= h[i];
        store_eight(target + place.column, kEight, true, g);  // zeros behind the last column
        return;
    }
    const E* row = pre_activation + static_cast<std::int64_t>(place.row) * 2 * width;
    float gates[kEight];
    load_columns(row, width, place.column, width, h);
    load_columns(row + width, width, place.column, width, gates);
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
        const float s = sigmoid(gates[i]);
        gates[i] = g[i] * h[i] * s * (1.0f - s);
        g[i] *= s;
    }
    store_columns(target, stride, place.column, width, g);
    store_columns(target + width, width, place.column, width, gates);
    if (place.column + kEight >= width) {
        for (int i = 2 * width; i < stride; ++i) target[i] = ptx::narrow<E>(0.0f);
    }
}

}  // namespace dmao
