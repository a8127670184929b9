// cpu/simd.h as plain C functions, for tests/native/test_simd.py. Each walks its arrays like a
// kernel: whole vectors, then a tail.
#include "../cpu/simd.h"

using namespace dmao;
using namespace dmao::DMAO_ISA_NAMESPACE;

namespace {

template <class In, class Out, class Function>
void map(const In* x, Out* y, std::int64_t n, Function f) {
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) store(y + i, f(load(x + i)));
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        store(y + i, f(load(x + i, rest)), rest);
    }
}

}  // namespace

extern "C" {

int vec_width() { return Vec::width; }

void vec_exp(const float* x, float* y, std::int64_t n) {
    map(x, y, n, [](Vec v) { return exp(v); });
}

void vec_exp2(const float* x, float* y, std::int64_t n) {
    map(x, y, n, [](Vec v) { return exp2(v); });
}

void vec_sigmoid(const float* x, float* y, std::int64_t n) {
    map(x, y, n, [](Vec v) { return sigmoid(v); });
}

void vec_abs(const float* x, float* y, std::int64_t n) {
    map(x, y, n, [](Vec v) { return abs(v); });
}

// max(v, 1) - min(v, 1) + v / 3 * v
void vec_arithmetic(const float* x, float* y, std::int64_t n) {
    const Vec one(1.0f);
    map(x, y, n, [=](Vec v) { return fma(v / Vec(3.0f), v, max(v, one) - min(v, one)); });
}

void to_bf16(const float* x, bfloat16* y, std::int64_t n) {
    map(x, y, n, [](Vec v) { return v; });
}

void from_bf16(const bfloat16* x, float* y, std::int64_t n) {
    map(x, y, n, [](Vec v) { return v; });
}

// One sum per vector of x; n is a multiple of the width.
void vec_sum(const float* x, float* y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += Vec::width) *y++ = sum(load(x + i));
}

// Likewise, the largest element.
void vec_largest(const float* x, float* y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += Vec::width) *y++ = largest(load(x + i));
}

std::uint16_t scalar_to_bf16(float x) { return to_bfloat16(x).bits; }
}
