// Large tensors on large pages of memory.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "common.h"

namespace dmao {

// The same tensor, not yet written. The allocator hands out large tensors as fresh pages; a fault
// for each 4 KB of them takes longer than filling them. Linux gives pages of 2 MB where it is asked
// to. Smaller tensors reuse memory anyway.
inline Tensor on_large_pages(Tensor tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = std::uintptr_t{1} << 21;
    const auto begin = reinterpret_cast<std::uintptr_t>(tensor.mutable_data_ptr());
    const std::uintptr_t end = begin + tensor.numel() * tensor.element_size();
    const std::uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
    // It is advice: nothing depends on whether it is taken.
    if (first + 8 * page <= last) {
        madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
    }
#endif
    return tensor;
}

}  // namespace dmao
