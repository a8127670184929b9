// linear_tiles: which tiles and spans are chosen; prints "right" or "wrong: ...".
#include "linear_tiles.h"

#include <cstdio>
#include <initializer_list>

namespace dmao {
namespace {

// --- A Conformer of width 384 on an H100 (132 processors) and an A100 (108)

static_assert(choose_tile(4000, 1536, 132) == LinearTile::t128x128);  // 384 tiles
static_assert(choose_tile(4000, 384, 132) == LinearTile::t128x64);    // 96 would leave some idle
static_assert(choose_tile(4000, 384, 96) == LinearTile::t128x128);
static_assert(choose_tile(300, 384, 132) == LinearTile::t64x64);
static_assert(choose_tile(1 << 20, 64, 132) ==
              LinearTile::t128x64);  // no half of a tile for nothing
static_assert(choose_tile(0, 0, 132) == LinearTile::t64x64);

static_assert(choose_tile_of_weights(1536, 384, 0) == LinearTile::t128x128);
static_assert(choose_tile_of_weights(40, 384, 0) == LinearTile::t64x64);
static_assert(choose_spans(4000, 36, 132).count == 7);   // 252 blocks
static_assert(choose_spans(4000, 300, 132).count == 1);  // enough of them
static_assert(choose_spans(100, 1, 132).count == 1);     // too short

// --- Blocks

constexpr int columns_of(LinearTile tile) {
    return tile == LinearTile::t128x16   ? 16
           : tile == LinearTile::t128x32 ? 32
           : tile == LinearTile::t128x48 ? 48
           : tile == LinearTile::t128x64 ? 64
                                         : 128;
}

// Of the columns that its tiles multiply, those that a block has, in percent.
constexpr int use_of_tiles(int block, bool along) {
    const int columns = columns_of(choose_tile_of_blocks(block, along));
    return 100 * block / ((block + columns - 1) / columns * columns);
}
static_assert(use_of_tiles(16, true) == 100 && use_of_tiles(48, true) == 100);
static_assert(use_of_tiles(80, true) == 83 && use_of_tiles(112, true) == 87);
static_assert(use_of_tiles(80, false) == 62 && use_of_tiles(48, false) == 75);

// Spans are whole steps, cover all tokens, and none is empty.
bool spans_cover(int tokens, int tiles, int processors) {
    const TokenSpans spans = choose_spans(tokens, tiles, processors);
    const std::int64_t length = spans.length, covered = length * spans.count;
    return spans.count >= 1 && length >= 32 && length % 32 == 0 && covered >= tokens &&
           (tokens == 0 || covered - length < tokens);
}

}  // namespace
}  // namespace dmao

int main() {
    for (int tokens = 0; tokens < 20000; tokens += tokens < 1100 ? 1 : 97) {
        for (int tiles = 0; tiles < 600; tiles += 1 + tiles / 3) {
            for (int processors : {1, 4, 108, 132}) {
                if (dmao::spans_cover(tokens, tiles, processors)) continue;
                std::printf("wrong: %d tokens, %d tiles, %d processors\n", tokens, tiles,
                            processors);
                return 1;
            }
        }
    }
    std::puts("right");
}
