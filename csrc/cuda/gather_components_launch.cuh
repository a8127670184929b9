// gather_components on tensors whose memory is on the GPU, by indices that are on the host.
#pragma once

#include <cstddef>

#include "element_types.h"
#include "gather_components.cuh"
#include "tables_launch.cuh"

namespace dmao {

// x [repeats, old_components, run] and given [repeats, given_components, run] become the new tensor
// out [repeats, components, run], which has entries.
struct GatheredTensor {
    const void *x, *given;
    void* out;
    ElementType type;
    std::int64_t repeats, components, run, old_components, given_components;
};

class GatherLaunch {
  public:
    // index [count, 2]: component of the old tensor and of the given one, or -1. Returns the place
    // of its first row, for all tensors that it belongs to.
    std::int32_t add_index(const std::int64_t* index, std::int64_t count) {
        const std::int32_t first = in_32_bits(static_cast<std::int64_t>(rows_.size()));
        for (std::int64_t i = 0; i < count; ++i) {
            rows_.push_back({static_cast<std::int32_t>(index[2 * i]),
                             static_cast<std::int32_t>(index[2 * i + 1])});
        }
        return first;
    }

    void add(const GatheredTensor& tensor, std::int32_t first_row) {
        const auto in_32 = [](std::int64_t value) {
            return static_cast<std::uint32_t>(in_32_bits(value));
        };
        entries_[place_of(tensor.type)].push_back(
            {tensor.x, tensor.given, tensor.out, tensor.repeats * tensor.components * tensor.run,
             in_32(tensor.run), in_32(tensor.components), in_32(tensor.old_components),
             in_32(tensor.given_components), first_row, 0});
    }

    std::int64_t scratch_bytes() const {
        return static_cast<std::int64_t>(rows_.size() * sizeof(GatherRow));
    }

    // scratch: so many bytes on the GPU.
    void run(const Gpu& gpu, void* scratch) {
        GatherRow* rows = static_cast<GatherRow*>(scratch);
        GatherRow* next = rows;
        by_tables(rows_, [&](const Table<GatherRow>& table) {
            const auto blocks =
                static_cast<unsigned>((table.count + kIndexThreads - 1) / kIndexThreads);
            launch<write_rows>(gpu, Grid{blocks}, kIndexThreads, 0, table, next);
            next += table.count;
        });
        for_each_element_type([&](auto element) {
            using E = decltype(element);
            walk_tables(
                gpu, entries_[place_of(type_of<E>)], kGatherBlocks,
                [](const GatherEntry& entry) {
                    return (entry.size + kGatherPiece<E> - 1) / kGatherPiece<E>;
                },
                [&](const Table<GatherEntry>& table, Grid grid) {
                    launch<gather_pieces<E>>(gpu, grid, kGatherThreads, 0, table,
                                             static_cast<const GatherRow*>(rows));
                });
        });
    }

  private:
    std::vector<GatherRow> rows_;
    std::vector<GatherEntry> entries_[kElementTypes];
};

}  // namespace dmao
