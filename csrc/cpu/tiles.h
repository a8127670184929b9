// How the tokens of a batch are cut for kernels that keep a tile of them, and what is computed of
// it, in the second-level cache (512 KB and more).
#pragma once

#include "arena.h"
#include "operands.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTile = 64;  // tokens
constexpr std::int64_t kSmallestTile = 32;

// Every worker gets equally many tiles.
std::int64_t tile_tokens(std::int64_t tokens, std::int64_t workers) {
    if (tokens <= kSmallestTile) return kSmallestTile;
    const std::int64_t tiles = round_up(divide_up(tokens, kTile), workers);
    const std::int64_t tile = round_up(divide_up(tokens, tiles), kRows);
    return tile < kSmallestTile ? kSmallestTile : tile;
}

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
