// Launches over tables by value.
#pragma once

#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.cuh"
#include "tables.cuh"

namespace dmao {

inline std::int32_t in_32_bits(std::int64_t value) {
    if (value < 0 || value > std::numeric_limits<std::int32_t>::max()) {
        throw std::runtime_error("a tensor has more than 2^31 - 1 of what is counted in 32 bits: " +
                                 std::to_string(value));
    }
    return static_cast<std::int32_t>(value);
}

// Calls launch(table) for as many tables as the entries fill.
template <class Entry, class Launch>
void by_tables(const std::vector<Entry>& entries, const Launch& launch) {
    constexpr std::size_t capacity = Table<Entry>::kCapacity;
    for (std::size_t first = 0; first < entries.size(); first += capacity) {
        Table<Entry> table{};
        const std::size_t left = entries.size() - first;
        table.count = static_cast<std::int32_t>(left < capacity ? left : capacity);
        for (int i = 0; i < table.count; ++i) table.entries[i] = entries[first + i];
        launch(table);
    }
}

// Calls launch(table, grid) with the pieces of each table numbered through, of which every entry
// has the number `pieces(entry)`, for blocks that walk over them: as many as have room at a time.
template <class Entry, class Count, class Launch>
void walk_tables(const Gpu& gpu, const std::vector<Entry>& entries, int blocks_per_processor,
                 const Count& pieces, const Launch& launch) {
    by_tables(entries, [&](Table<Entry>& table) {
        std::int64_t end = 0;
        for (int i = 0; i < table.count; ++i) {
            end += pieces(table.entries[i]);
            table.entries[i].end = in_32_bits(end);
        }
        const std::int64_t room = std::int64_t{gpu.processors} * blocks_per_processor;
        launch(table, Grid{static_cast<unsigned>(end < room ? end : room)});
    });
}

}  // namespace dmao
