// Plain types shared by kernels and their callers. No functions: an inline function here would be
// compiled with the flags of whichever instruction set includes it first.
#pragma once

#include <cstdint>

namespace dmao {

// Same bits as torch.bfloat16; cpu/simd.h converts.
struct bfloat16 {
    std::uint16_t bits;
};

enum class DType : std::int32_t { float32, bfloat16 };

enum class Activation : std::int32_t { silu, relu, gelu, none, glu };

// Rows [first, first + length) of a batch.
struct Utterance {
    std::int64_t first, length;
};

}  // namespace dmao
