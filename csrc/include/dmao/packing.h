// pack, unpack: utterances one behind the other instead of padded to a common length, and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"

namespace dmao {

struct Packing {
    const std::byte* source;  // pack: [utterances, frames] rows, unpack: [offsets[utterances]]
    std::byte* target;        // the other
    // [utterances + 1], ascending from 0 by at most `frames`
    const std::int32_t* offsets;
    std::int64_t utterances, frames;
    std::int64_t row_bytes;  // at least 1
};

using PackingKernel = void(const Packing&, const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(pack, PackingKernel)
DMAO_DECLARE_CPU_KERNEL(unpack, PackingKernel)
