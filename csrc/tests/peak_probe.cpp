// What this machine can do at most, for benchmarks/roofline.py: multiply-adds on registers,
// reading memory, and updating it. Compiled for one instruction set at a time; called through
// ctypes.
#include "../cpu/simd.h"

using namespace dmao;
using namespace dmao::DMAO_ISA_NAMESPACE;

namespace {
constexpr int kChains = 12;  // two units, each with a latency of four to five cycles
}

extern "C" {

// Flops of `count` rounds of multiply-adds in independent chains. The sink keeps them alive.
double peak_float32(std::int64_t count, float* sink) {
    decltype(Vec::v) chains[kChains];
    // All loops over the chains are unrolled: an array that is indexed at run time lives in memory.
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = Vec(0.001f * static_cast<float>(i)).v;
    const Vec a(sink[0]), b(sink[1]);
    for (std::int64_t k = 0; k < count; ++k) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) {
            chains[i] = fma(a, chains[i], b).v;
            // Hides the value from the optimiser, so that no round is merged with another.
            asm volatile("" : "+v"(chains[i]));
        }
    }
    float total = 0;
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) total += sum(Vec(chains[i]));
    sink[2] = total;
    return 2.0 * Vec::width * kChains * static_cast<double>(count);
}

// The same with products of bfloat16 pairs; 0 where the instruction set has none.
double peak_bfloat16([[maybe_unused]] std::int64_t count, [[maybe_unused]] float* sink) {
#if defined(__AVX512BF16__)
    __m512 chains[kChains];
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = _mm512_setzero_ps();
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(sink[0]), _mm512_set1_ps(sink[1]));
    for (std::int64_t k = 0; k < count; ++k) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) {
            chains[i] = _mm512_dpbf16_ps(chains[i], a, a);
            asm volatile("" : "+v"(chains[i]));
        }
    }
    float total = 0;
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) total += _mm512_reduce_add_ps(chains[i]);
    sink[2] = total;
    return 4.0 * 16 * kChains * static_cast<double>(count);
#else
    return 0.0;
#endif
}

// Bytes read. n is a multiple of `streams` times four vectors; one core reads faster where several
// parts are read side by side.
double read_memory(const float* x, std::int64_t n, std::int64_t streams, float* sink) {
    constexpr int w = Vec::width;
    const std::int64_t part = n / streams;
    Vec a(0.0f), b(0.0f), c(0.0f), d(0.0f);
    for (std::int64_t i = 0; i < part; i += 4 * w) {
        for (const float* at = x + i; at < x + n; at += part) {
            a = a + load(at);
            b = b + load(at + w);
            c = c + load(at + 2 * w);
            d = d + load(at + 3 * w);
        }
    }
    sink[2] = sum((a + b) + (c + d));
    return 4.0 * static_cast<double>(n);
}

// Bytes read and written, in place; n as above.
double update_memory(float* x, std::int64_t n, std::int64_t streams, float* sink) {
    const std::int64_t part = n / streams;
    const Vec factor(sink[0]);
    for (std::int64_t i = 0; i < part; i += Vec::width) {
        for (float* at = x + i; at < x + n; at += part) store(at, load(at) * factor);
    }
    return 8.0 * static_cast<double>(n);
}
}
