// Activations with their derivatives, in float. NaN stays NaN, and its slope under relu is 1, as
// in PyTorch.
#pragma once

#include "dmao/types.h"
#include "simd.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// An activation and its derivative at the same point.
struct ValueAndSlope {
    Vec value, slope;
};

// h sigmoid(h)
struct Silu {
    static constexpr Activation kind = Activation::silu;

    static Vec value(Vec h) { return h * sigmoid(h); }

    static ValueAndSlope value_and_slope(Vec h) {
        const Vec s = sigmoid(h);
        const Vec value = h * s;
        return {value, fma(value, Vec(1.0f) - s, s)};
    }
};

struct Relu {
    static constexpr Activation kind = Activation::relu;

    static Vec value(Vec h) { return max(Vec(0.0f), h); }

    static ValueAndSlope value_and_slope(Vec h) {
        const decltype(Vec::v) one = Vec(1.0f).v, zero = Vec(0.0f).v;
        return {value(h), Vec(h.v <= zero ? zero : one)};
    }
};

// erf(x) to 4e-7 absolute: odd over even polynomial on [-4, 4], outside of which erf is +-1 in
// float (the coefficients that Eigen and XLA use).
inline Vec erf(Vec x) {
    x = max(Vec(-4.0f), min(Vec(4.0f), x));
    const Vec s = x * x;
    Vec odd(-2.72614225801306e-10f);
    odd = fma(odd, s, Vec(2.77068142495902e-08f));
    odd = fma(odd, s, Vec(-2.10102402082508e-06f));
    odd = fma(odd, s, Vec(-5.69250639462346e-05f));
    odd = fma(odd, s, Vec(-7.34990630326855e-04f));
    odd = fma(odd, s, Vec(-2.95459980854025e-03f));
    odd = fma(odd, s, Vec(-1.60960333262415e-02f));
    Vec even(-1.45660718464996e-05f);
    even = fma(even, s, Vec(-2.13374055278905e-04f));
    even = fma(even, s, Vec(-1.68282697438203e-03f));
    even = fma(even, s, Vec(-7.37332916720468e-03f));
    even = fma(even, s, Vec(-1.42647390514189e-02f));
    return x * odd / even;
}

// h Phi(h) with the normal distribution function Phi, not its tanh approximation.
struct Gelu {
    static constexpr Activation kind = Activation::gelu;

    static Vec distribution(Vec h) { return fma(erf(h * Vec(0.70710678f)), Vec(0.5f), Vec(0.5f)); }

    static Vec value(Vec h) { return h * distribution(h); }

    static ValueAndSlope value_and_slope(Vec h) {
        const Vec phi = distribution(h);
        const Vec density = exp(h * h * Vec(-0.5f)) * Vec(0.39894228f);
        return {h * phi, fma(h, density, phi)};
    }
};

struct Identity {
    static constexpr Activation kind = Activation::none;

    static Vec value(Vec h) { return h; }

    static ValueAndSlope value_and_slope(Vec h) { return {h, Vec(1.0f)}; }
};

// run<T, Activate>() for the dtype, and for the one of the candidates that the activation is.
template <class... Candidates, class Run>
void choose(DType dtype, Activation activation, const Run& run) {
    const auto with_dtype = [&]<class T>() {
        const auto offer = [&]<class Activate>() {
            if (activation == Activate::kind) run.template operator()<T, Activate>();
        };
        (offer.template operator()<Candidates>(), ...);
    };
    if (dtype == DType::float32) {
        with_dtype.template operator()<float>();
    } else {
        with_dtype.template operator()<bfloat16>();
    }
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
