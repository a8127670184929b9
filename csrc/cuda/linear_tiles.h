// Which tile a product of csrc/cuda/linear.cuh takes, and into how many planes sums over tokens are
// cut: functions of its shape and the GPU.
//
// Beside each tile what it was made for: registers of a thread that its blocks leave room for, and
// shared memory of a block. Blocks hide the waits of each other, and so do warps; sm_86, 89 and 120
// have 100 KiB of shared memory on a processor. Warps of 64 x 64 read least of it.
#pragma once

#include <cstdint>

namespace dmao {

enum class LinearTile : std::int32_t {
    t128x128,  // 3 stages, 48 KiB, 2 blocks; 8 warps of 64 x 32: 128 registers, or for sums over
               // tokens and for float32 4 warps of 64 x 64: 255 registers
    t128x64,   // 4 warps of 64 x 32, 3 stages: 168 registers, 36 KiB, 2 blocks (3 with 164 KiB)
    t64x64,    // 4 warps of 32 x 32, 4 stages: 128 registers, 32 KiB, 3 blocks (4)
    t128x48,   // 4 warps of 32 x 48, 3 stages: 33 KiB
    t128x32,   // 4 warps of 32 x 32, 3 stages: 30 KiB
    t128x16,   // 4 warps of 32 x 16, 4 stages: 36 KiB
    t64x128,   // 8 warps of 32 x 32, 3 stages: 36 KiB
    t32x128,   // 4 warps of 32 x 32, 3 stages: 30 KiB
    t16x128,   // 4 warps of 16 x 32, 4 stages: 36 KiB
};

// Tiles of rows x columns that a result has.
constexpr std::int64_t tile_count(int rows, int columns, int tile_rows, int tile_columns) {
    return static_cast<std::int64_t>((rows + tile_rows - 1) / tile_rows) *
           ((columns + tile_columns - 1) / tile_columns);
}

// Of a result that is not cut into blocks. A tile of 128 x 128 reads least; where too few of them
// are there for the processors, halves are taken.
constexpr LinearTile choose_tile(int rows, int columns, int processors) {
    if (columns > 64 && tile_count(rows, columns, 128, 128) >= processors) {
        return LinearTile::t128x128;
    }
    if (tile_count(rows, columns, 128, 64) >= processors) return LinearTile::t128x64;
    return LinearTile::t64x64;
}

// Columns are cut into blocks. `along`: forward, where any number of columns goes into a tile.
constexpr LinearTile choose_tile_of_blocks(int block, bool along) {
    if (block <= 16) return LinearTile::t128x16;
    if (block <= 32) return LinearTile::t128x32;
    if (along && (block == 48 || block == 80 || block == 96)) return LinearTile::t128x48;
    if (block <= 64) return LinearTile::t128x64;
    return LinearTile::t128x128;
}

// Sums over tokens of a result whose rows may be cut into blocks (else block is 0).
constexpr LinearTile choose_tile_of_weights(int rows, int columns, int block) {
    if (block == 0) return rows > 64 && columns > 64 ? LinearTile::t128x128 : LinearTile::t64x64;
    if (block <= 16) return LinearTile::t16x128;
    if (block <= 32) return LinearTile::t32x128;
    if (block <= 64) return LinearTile::t64x128;
    return LinearTile::t128x128;
}

struct TokenSpans {
    int count, length;  // at least 1
};

// Two blocks per processor want something to do; a span is long enough for the second pass, over
// the sums of all spans, not to matter. Lengths are whole steps.
constexpr TokenSpans choose_spans(int tokens, std::int64_t tiles, int processors) {
    constexpr int shortest = 512, step = 32;
    if (tokens <= 0) return {1, step};
    std::int64_t count = 2 * static_cast<std::int64_t>(processors) / (tiles > 0 ? tiles : 1);
    const std::int64_t most = (static_cast<std::int64_t>(tokens) + shortest - 1) / shortest;
    if (count > most) count = most;
    if (count < 1) count = 1;
    const std::int64_t unit = count * step;
    const int length = static_cast<int>((tokens + unit - 1) / unit) * step;
    return {(tokens + length - 1) / length, length};
}

}  // namespace dmao
