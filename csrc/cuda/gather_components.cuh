// New tensors whose components are old ones, given ones, what remains of an old one when a given
// one is taken off, or zero.
//
// Floor: one read and one write of the new tensors at memory bandwidth.
#pragma once

#include "quads.cuh"
#include "tables.cuh"

namespace dmao {

// The component of the old tensor and the given one of which a new component is made; negative:
// none.
struct alignas(8) GatherRow {
    std::int32_t source, value;
};

inline constexpr int kIndexThreads = 128;

// Rows of indices, into the memory of the device.
static __global__ void __launch_bounds__(kIndexThreads)
    write_rows(DMAO_BY_VALUE(Table<GatherRow>) table, GatherRow* rows) {
    const int i = static_cast<int>(blockIdx.x) * kIndexThreads + static_cast<int>(threadIdx.x);
    if (i < table.count) rows[i] = table.entries[i];
}

// A new tensor [repeats, components, run].
struct GatherEntry {
    const void *x, *given;
    void* out;
    std::int64_t size;  // entries
    std::uint32_t run, components, old_components, given_components;
    std::int32_t first_row;  // of its index
    std::int32_t end;        // behind its last piece
};

inline constexpr int kGatherThreads = 256, kGatherVectors = 8, kGatherBlocks = 4;
// Entries of a piece, which lie side by side.
template <class E>
inline constexpr int kGatherPiece = kGatherThreads * kGatherVectors * kPerQuad<E>;

template <class E>
struct Gather {
    const E *x, *given;
    const GatherRow* rows;
    std::uint32_t run, components, old_components, given_components;
    // Where the piece begins.
    std::int64_t repeat;
    std::uint32_t component, column;

    struct Sources {
        const E *x, *given;  // null: none
        std::uint32_t left;  // entries of the component from there on
    };

    // Of the entry that is `offset` behind the first one of the piece.
    __device__ __forceinline__ Sources at(std::uint32_t offset) const {
        const std::uint32_t columns = column + offset, down = component + columns / run;
        const std::uint32_t begin = columns % run, own = down % components;
        const std::int64_t line = repeat + down / components;
        const GatherRow row = rows[own];
        const auto place = [&](const E* tensor, std::uint32_t count, std::int32_t i) {
            return i < 0 ? nullptr : tensor + (line * count + i) * run + begin;
        };
        return {place(x, old_components, row.source), place(given, given_components, row.value),
                run - begin};
    }
};

template <class E>
__device__ __forceinline__ E subtract(E whole, E part) {
    return ptx::narrow<E>(ptx::widen(whole) - ptx::widen(part));
}

// Bits of what is not subtracted are kept.
template <class E>
__device__ __forceinline__ E make_element(const E* x, const E* given) {
    if (x != nullptr && given != nullptr) return subtract(*x, *given);
    return x != nullptr ? *x : given != nullptr ? *given : E{};
}

template <class E>
__device__ __forceinline__ Quad read_quad(const E* p) {
    if (starts_quad(p)) return *reinterpret_cast<const Quad*>(p);
    Quad quad{};
#pragma unroll
    for (int i = 0; i < kPerQuad<E>; ++i) set_element(quad, i, p[i]);
    return quad;
}

template <class E>
__device__ __forceinline__ Quad make_quad(const E* x, const E* given) {
    if (x == nullptr && given == nullptr) return Quad{};
    const Quad whole = read_quad(x != nullptr ? x : given);
    if (x == nullptr || given == nullptr) return whole;
    const Quad part = read_quad(given);
    Quad rest{};
#pragma unroll
    for (int i = 0; i < kPerQuad<E>; ++i) {
        set_element(rest, i, subtract(element_of<E>(whole, i), element_of<E>(part, i)));
    }
    return rest;
}

// `count` entries of the piece, at most a quad, from `offset` on.
template <class E>
__device__ __forceinline__ Quad make_entries(const Gather<E>& gather, std::uint32_t offset,
                                             int count) {
    const auto sources = gather.at(offset);
    if (count == kPerQuad<E> && sources.left >= kPerQuad<E>) {
        return make_quad(sources.x, sources.given);
    }
    Quad quad{};
#pragma unroll
    for (int i = 0; i < kPerQuad<E>; ++i) {
        if (i >= count) break;
        const auto one = gather.at(offset + i);
        set_element(quad, i, make_element(one.x, one.given));
    }
    return quad;
}

template <class E>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks)
    gather_pieces(DMAO_BY_VALUE(Table<GatherEntry>) table, const GatherRow* rows) {
    walk_pieces(table, [&](const GatherEntry& entry, std::uint32_t index) {
        const std::int64_t first = std::int64_t{index} * kGatherPiece<E>;
        const std::int64_t line = first / entry.run;  // of components of all repeats
        const Gather<E> gather{static_cast<const E*>(entry.x),
                               static_cast<const E*>(entry.given),
                               rows + entry.first_row,
                               entry.run,
                               entry.components,
                               entry.old_components,
                               entry.given_components,
                               line / entry.components,
                               static_cast<std::uint32_t>(line % entry.components),
                               static_cast<std::uint32_t>(first % entry.run)};
        E* out = static_cast<E*>(entry.out) + first;
        const std::int64_t left = entry.size - first;
        for (int i = 0; i < kGatherVectors; ++i) {
            const std::uint32_t offset =
                (i * kGatherThreads + static_cast<std::uint32_t>(threadIdx.x)) * kPerQuad<E>;
            if (offset >= left) return;
            const int count =
                left - offset < kPerQuad<E> ? static_cast<int>(left - offset) : kPerQuad<E>;
            const Quad quad = make_entries(gather, offset, count);
            if (count == kPerQuad<E>) {  // new memory: it begins at a multiple of 16 bytes
                *reinterpret_cast<Quad*>(out + offset) = quad;
            } else {
#pragma unroll
                for (int k = 0; k < kPerQuad<E>; ++k) {
                    if (k < count) out[offset + k] = element_of<E>(quad, k);
                }
            }
        }
    });
}

}  // namespace dmao
