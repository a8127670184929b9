// The types of elements on a GPU: bfloat16 and float16 as bits, so that neither the host nor the
// emulation needs CUDA's headers.
#pragma once

#include <cstdint>

#include "dmao/types.h"

namespace dmao {

// Same bits as torch.float16.
struct float16 {
    std::uint16_t bits;
};

}  // namespace dmao
