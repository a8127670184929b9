// gather_components: new tensors made of the components of old ones.
#pragma once

#include <cstdint>

#include "dmao/isa.h"
#include "dmao/parallel.h"
#include "dmao/types.h"

namespace dmao {

// x [repeats, components, run] and given [repeats, given_components, run] become
// out [repeats, count, run]; index [count, 2] is (component of x or -1, component of given or -1).
struct GatherTensor {
    const void* x;
    const void* given;
    void* out;
    DType dtype;
    const std::int64_t* index;
    std::int64_t components, given_components, count, run;
};

struct GatherChunk {
    std::int64_t tensor;
    std::int64_t begin, end;  // elements of its out
};

struct GatherProblem {
    const GatherTensor* tensors;
    const GatherChunk* chunks;
    std::int64_t count;    // of chunks
    std::int64_t workers;  // threads
};

using GatherKernel = void(const GatherProblem&, const ParallelFor&);

}  // namespace dmao

DMAO_DECLARE_CPU_KERNEL(gather_components, GatherKernel)
