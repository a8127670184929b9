// block_attention_tiles: which tiles, diagonals and parts are chosen; prints "right" or "wrong:
// ...".
#include "block_attention_tiles.h"

#include <cstdio>
#include <initializer_list>

namespace dmao {
namespace {

// --- Heads are padded, not cut, and shared memory suffices for them

constexpr int kSmallest = 99 << 10;  // of all architectures
static_assert(shared_bytes_of(80) == 163 << 10 && shared_bytes_of(86) == kSmallest);
static_assert(shared_bytes_of(90) == 227 << 10 && shared_bytes_of(100) == 227 << 10);
static_assert(shared_bytes_of(89) == kSmallest && shared_bytes_of(120) == kSmallest);

constexpr bool padded(int element_bytes) {
    for (int width = 1; width <= 256; ++width) {
        const int wide = attention_width(width, element_bytes);
        if (wide < width || wide % 32 != 0 || (width > 32 && wide >= 2 * width)) return false;
    }
    return true;
}
static_assert(padded(2) && padded(4));

constexpr bool fits(AttentionPass pass, int width, int element_bytes, bool positions) {
    const int bytes = attention_shared_bytes(pass, width, element_bytes, positions);
    return bytes > 0 && bytes <= kSmallest;
}
constexpr bool all_fit(int width, int element_bytes) {
    bool fit = fits(AttentionPass::positions, width, element_bytes, true);
    for (AttentionPass pass : {AttentionPass::forward, AttentionPass::queries, AttentionPass::keys})
        fit = fit && fits(pass, width, element_bytes, false) &&
              fits(pass, width, element_bytes, true);
    return fit;
}
static_assert(all_fit(32, 2) && all_fit(64, 2) && all_fit(96, 2) && all_fit(128, 2));
static_assert(all_fit(256, 2) && all_fit(32, 4) && all_fit(64, 4) && all_fit(128, 4));
static_assert(fits(AttentionPass::forward, 256, 4, true));
static_assert(fits(AttentionPass::keys, 256, 4, false));
static_assert(attention_shared_bytes(AttentionPass::keys, 256, 4, true) <= shared_bytes_of(80));

// --- Diagonals: whatever is visible is on one, and where one stands for others all distances are
// clamped

struct Window {
    int left, right, chunk, left_chunks;
};

bool sees(const Window& w, int query, int key) {
    const int first = (query / w.chunk - w.left_chunks) * w.chunk;
    return key >= query - w.left && key <= query + w.right && key >= first &&
           key < (query / w.chunk + 1) * w.chunk;
}

bool diagonals_hold(const Window& w, int frames, int reach, int tile) {
    const AttentionDiagonals found =
        attention_diagonals(w.left, w.right, w.chunk, w.left_chunks, frames, reach, tile);
    if (found.count() < 1) return false;
    if (found.least < found.first && found.first * tile + tile - 1 > -reach) return false;
    if (found.greatest > found.last && found.last * tile - tile + 1 < reach) return false;
    for (int query = 0; query < frames; ++query) {
        for (int key = 0; key < frames; ++key) {
            const int diagonal = key / tile - query / tile;
            if (sees(w, query, key) && (diagonal < found.least || diagonal > found.greatest))
                return false;
        }
    }
    return true;
}

// --- Parts: none is empty, and where there is enough to do every processor has some

bool parts_hold(int diagonals, int heads, int utterances, int processors) {
    const int parts = attention_parts(diagonals, heads, utterances, processors);
    return parts >= 1 && parts <= utterances &&
           (parts == utterances || diagonals * heads * parts >= 4 * processors);
}

}  // namespace
}  // namespace dmao

int main() {
    constexpr int kFar = 1 << 30;
    for (const dmao::Window& w :
         {dmao::Window{kFar, kFar, kFar, 0}, dmao::Window{kFar, 0, kFar, 0},
          dmao::Window{7, 3, kFar, 0}, dmao::Window{0, 0, 1, 0}, dmao::Window{kFar, kFar, 8, 0},
          dmao::Window{kFar, kFar, 12, 2}, dmao::Window{40, 5, 16, kFar / 16}}) {
        for (int frames : {1, 15, 16, 17, 50, 95}) {
            for (int reach : {0, 1, 17, 200}) {
                for (int tile : {16, 32, 64}) {
                    if (dmao::diagonals_hold(w, frames, reach, tile)) continue;
                    std::printf("wrong: diagonals of %d frames, reach %d, tile %d, window %d %d\n",
                                frames, reach, tile, w.left, w.right);
                    return 1;
                }
            }
        }
    }
    for (int diagonals : {1, 3, 40}) {
        for (int utterances = 1; utterances < 80; ++utterances) {
            for (int processors : {1, 4, 132}) {
                if (dmao::parts_hold(diagonals, 4, utterances, processors)) continue;
                std::printf("wrong: parts of %d diagonals, %d utterances, %d processors\n",
                            diagonals, utterances, processors);
                return 1;
            }
        }
    }
    std::puts("right");
}
