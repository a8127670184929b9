// What the fuzzers of the CPU kernels share. Each csrc/tests/fuzz/<op>.cpp defines `fuzz`, one
// random problem of csrc/cpu/<op>.cpp; tests/native/test_sanitized.py builds both with main.cpp and
// a sanitizer. Every array is an allocation of its own of exactly the promised size, so that a read
// or a write beside it is seen.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"
#include "dmao/workspace.h"

namespace dmao::fuzzing {

// One random problem, run in parallel by `parallel` with `workers` workers.
void fuzz(const ParallelFor& parallel, std::int64_t workers);

inline std::mt19937_64 random_bits(1);

inline std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(random_bits() % static_cast<std::uint64_t>(bound));
}

inline bool coin() { return below(2) == 0; }

inline std::int64_t one_of(std::initializer_list<std::int64_t> values) {
    return values.begin()[below(static_cast<std::int64_t>(values.size()))];
}

inline DType some_dtype() { return coin() ? DType::float32 : DType::bfloat16; }

// A tensor of numbers in [-1, 1].
inline std::unique_ptr<char[]> tensor(std::int64_t count, DType dtype) {
    const std::size_t size = dtype == DType::float32 ? 4 : 2;
    std::unique_ptr<char[]> values(new char[count * size]);
    for (std::int64_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(below(2001)) / 1000.0f - 1.0f;
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        const std::uint16_t high = static_cast<std::uint16_t>(bits >> 16);
        std::memcpy(values.get() + i * size,
                    size == 4 ? static_cast<const void*>(&bits) : static_cast<const void*>(&high),
                    size);
    }
    return values;
}

inline std::unique_ptr<float[]> floats(std::int64_t count) {
    std::unique_ptr<float[]> values(new float[count]);
    for (std::int64_t i = 0; i < count; ++i)
        values[i] = static_cast<float>(below(2001)) / 1000.0f - 1.0f;
    return values;
}

// Where results go, so that builds for two instruction sets can be compared: of each tensor the
// number of its elements and these as floats; null: nowhere.
inline std::FILE* results = nullptr;

inline void record(const float* values, std::int64_t count) {
    if (results == nullptr) return;
    std::fwrite(&count, sizeof(count), 1, results);
    std::fwrite(values, sizeof(*values), count, results);
}

inline void record(const double* values, std::int64_t count) {
    const std::vector<float> rounded(values, values + count);
    record(rounded.data(), count);
}

inline void record(const void* values, std::int64_t count, DType dtype) {
    if (dtype == DType::float32) return record(static_cast<const float*>(values), count);
    std::vector<float> widened(count);
    for (std::int64_t i = 0; i < count; ++i) {
        std::memcpy(reinterpret_cast<char*>(&widened[i]) + 2,
                    static_cast<const char*>(values) + 2 * i, 2);
    }
    record(widened.data(), count);
}

// Scratch memory as an operation hands it out: aligned, not initialised (here: NaN).
class Scratch {
  public:
    explicit Scratch(std::int64_t floats) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, floats > 0 ? floats * sizeof(float) : 1) != 0) std::abort();
        std::memset(memory, 0xff, floats * sizeof(float));
        memory_.reset(static_cast<float*>(memory));
    }
    float* get() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> memory_;
};

}  // namespace dmao::fuzzing

namespace dmao::DMAO_ISA_NAMESPACE {}  // namespace dmao::DMAO_ISA_NAMESPACE
namespace kernels = dmao::DMAO_ISA_NAMESPACE;
