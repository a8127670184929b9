// Tables by value: what a kernel has to know of hundreds of tensors is its argument, so that
// nothing is uploaded, kept or waited for.
#pragma once

#include <cstdint>

#include "ptx.cuh"

// A large argument of a kernel, which is read where it lies.
#if defined(__CUDACC__)
#define DMAO_BY_VALUE(T) const __grid_constant__ T
#else
#define DMAO_BY_VALUE(T) const T&
#endif

namespace dmao {

// Of 32764 bytes that the arguments of a kernel may have (sm_70 and CUDA 12.1, or later).
inline constexpr int kTableBytes = 32 << 10, kOtherArgumentBytes = 256;

template <class Entry>
struct Table {
    static constexpr int kCapacity =
        (kTableBytes - kOtherArgumentBytes) / static_cast<int>(sizeof(Entry));

    std::int32_t count;
    Entry entries[kCapacity];
};

// Calls visit(entry, index) for those pieces of all entries that are this block's. Every entry has
// a number of pieces, and `end` is behind its last one among those of its table.
template <class Entry, class Visit>
__device__ __forceinline__ void walk_pieces(const Table<Entry>& table, const Visit& visit) {
    const int all = table.entries[table.count - 1].end;
    for (int piece = static_cast<int>(blockIdx.x); piece < all;
         piece += static_cast<int>(gridDim.x)) {
        int low = 0, high = table.count - 1;  // the first entry whose pieces end behind this one
        while (low < high) {
            const int middle = (low + high) / 2;
            if (table.entries[middle].end <= piece) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        const int before = low == 0 ? 0 : table.entries[low - 1].end;
        visit(table.entries[low], static_cast<std::uint32_t>(piece - before));
    }
}

}  // namespace dmao
