// Activations and their slopes in float, as csrc/cpu/activation.h has them. NaN stays NaN.
#pragma once

#include "ptx.cuh"

namespace dmao {

__device__ __forceinline__ float sigmoid(float h) { return __fdividef(1.0f, 1.0f + expf(-h)); }

// The normal distribution function, not its tanh approximation.
__device__ __forceinline__ float normal_distribution(float h) {
    return fmaf(0.5f, erff(h * 0.70710678f), 0.5f);
}

// values = activation(values); the switch is the same for all threads.
template <int count>
__device__ __forceinline__ void activate(Activation activation, float (&values)[count]) {
    if (activation == Activation::silu) {
#pragma unroll
        for (float& h : values) h *= sigmoid(h);
    } else if (activation == Activation::relu) {
#pragma unroll
        for (float& h : values) h = h <= 0.0f ? 0.0f : h;
    } else if (activation == Activation::gelu) {
#pragma unroll
        for (float& h : values) h *= normal_distribution(h);
    }
}

// values = the derivative of the activation at them; for relu 0 at 0 and 1 at NaN.
template <int count>
__device__ __forceinline__ void replace_by_slope(Activation activation, float (&values)[count]) {
    if (activation == Activation::silu) {
#pragma unroll
        for (float& h : values) {
            const float s = sigmoid(h);
            h = fmaf(h * s, 1.0f - s, s);
        }
    } else if (activation == Activation::relu) {
#pragma unroll
        for (float& h : values) h = h <= 0.0f ? 0.0f : 1.0f;
    } else if (activation == Activation::gelu) {
#pragma unroll
        for (float& h : values) {
            h = fmaf(h * expf(-0.5f * h * h), 0.39894228f, normal_distribution(h));
        }
    } else {
#pragma unroll
        for (float& h : values) h = 1.0f;
    }
}

}  // namespace dmao
