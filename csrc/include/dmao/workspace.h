// The memory that a kernel works in.
#pragma once

#include <cstdint>

namespace dmao {

// `scratch` floats as the kernel's *_scratch function counts them, aligned to 64 bytes and not
// initialised, and as many workers as there are threads. The results do not depend on the number of
// workers.
struct Workspace {
    float* scratch;
    std::int64_t workers;
};

}  // namespace dmao
