// Which tiles the kernels of block_attention take, and what shared memory that needs. For the host
// and for compilers; no CUDA.
//
// A line is a row of q or k in shared memory: the width of a head, padded, times the bytes of an
// element. All tiles fit into the 99 KiB that every GPU since sm_80 has, but for those of 1024-byte
// lines (float32 heads of more than 128) with relative positions, backward.
#pragma once

namespace dmao {

enum class AttentionPass { forward, queries, keys, positions };

struct AttentionTile {
    int queries, keys;  // a tile of scores; the backward passes by keys and positions take squares
    int warps;
    int stages;  // tiles of the other side in shared memory
};

// Heads are padded with zeros to one of these widths.
constexpr int attention_width(int width, int element_bytes) {
    if (width <= 32) return 32;
    if (width <= 64) return 64;
    if (width <= 96 && element_bytes == 2) return 96;
    return width <= 128 ? 128 : 256;
}

// By the registers of a thread, of which 255 must do: sums take width / 2 for 16 rows a warp,
// scores half of its keys. The kernels are compiled for eight warps on a processor.
constexpr AttentionTile attention_tile(AttentionPass pass, int width, int element_bytes,
                                       bool positions) {
    const int line = width * element_bytes;
    switch (pass) {
        case AttentionPass::forward:
            if (positions) {
                if (line <= 128) return {64, 64, 4, 2};
                if (line == 192) return {64, 64, 4, 1};
                if (line == 256) return {64, element_bytes == 2 ? 32 : 64, 4, 1};
                return line == 512 ? AttentionTile{32, 16, 2, 1} : AttentionTile{16, 16, 2, 1};
            }
            if (line <= 128) return {128, 64, 4, 2};  // 32 rows a warp
            if (line <= 256) return {64, 64, 4, 2};
            return line == 512 ? AttentionTile{64, 16, 4, 2} : AttentionTile{32, 16, 4, 1};
        case AttentionPass::queries:
            if (positions) {
                if (line <= 192) return {64, 64, 4, 1};
                if (line == 256) return {64, 32, 4, 1};
                return line == 512 ? AttentionTile{32, 16, 2, 1} : AttentionTile{16, 16, 4, 1};
            }
            if (line <= 192) return {64, 64, 4, 2};
            if (line == 256) return {64, 64, 4, 1};
            return line == 512 ? AttentionTile{64, 32, 4, 1} : AttentionTile{32, 16, 4, 1};
        case AttentionPass::keys:
            if (positions) break;
            if (line <= 128) return {64, 64, 4, 2};
            if (line <= 256) return {64, 64, 8, 1};
            return line == 512 ? AttentionTile{32, 32, 4, 1} : AttentionTile{16, 16, 4, 1};
        case AttentionPass::positions:
            break;
    }
    if (line <= 128) return {64, 64, 4, 1};
    return line <= 256 ? AttentionTile{32, 32, 4, 1} : AttentionTile{16, 16, 4, 1};
}

// Bytes of a tile of [queries, keys] in the type of the elements; its lines have 64 bytes at least.
constexpr int attention_scores_bytes(int queries, int keys, int element_bytes) {
    const int line = keys * element_bytes;
    return queries * (line < 64 ? 64 : line);
}

constexpr int attention_shared_bytes(AttentionPass pass, int width, int element_bytes,
                                     bool positions) {
    const AttentionTile tile = attention_tile(pass, width, element_bytes, positions);
    const int line = width * element_bytes, band = tile.queries + tile.keys;
    const int keys = 2 * tile.keys + (positions ? band : 0);
    const int both = positions ? 2 * tile.queries : tile.queries;  // with either bias
    const int scores = attention_scores_bytes(tile.queries, tile.keys, element_bytes);
    switch (pass) {
        case AttentionPass::forward:
            return (both + tile.stages * keys) * line;
        case AttentionPass::queries:
            return (both + tile.queries + tile.stages * keys) * line;
        case AttentionPass::keys:
            return (2 * tile.keys + (both - tile.queries) +
                    tile.stages * (2 * tile.queries + (positions ? band : 0))) *
                       line +
                   2 * scores;
        default:
            return (both + tile.queries + 2 * tile.keys + band) * line +
                   attention_scores_bytes(tile.queries, band, element_bytes);
    }
}

// What a block may have, at most.
constexpr int shared_bytes_of(int architecture) {
    if (architecture == 80 || architecture == 87) return 163 << 10;
    if (architecture >= 90 && architecture < 120) return 227 << 10;
    return 99 << 10;
}

// A diagonal of tiles has a distance of its own between the tile of keys and that of queries.
struct AttentionDiagonals {
    int first, last;      // those with sums of their own; beyond them all distances are clamped
    int least, greatest;  // those where anything is seen
    constexpr int count() const { return last - first + 1; }
};

inline AttentionDiagonals attention_diagonals(int left, int right, int chunk, int left_chunks,
                                              int frames, int reach, int tile) {
    const auto smaller = [](long x, long y) { return static_cast<int>(x < y ? x : y); };
    const int before = smaller(smaller(left, (left_chunks + 1L) * chunk - 1), frames - 1L);
    const int after = smaller(smaller(right, chunk - 1L), frames - 1L);
    const int least = -((tile - 1 + before) / tile), greatest = (after + tile - 1) / tile;
    const int clamped = (reach + 2 * tile - 2) / tile;
    return {least > -clamped ? least : -clamped, smaller(greatest, clamped), least, greatest};
}

// Utterances are dealt to several blocks where there are few diagonals.
inline int attention_parts(int diagonals, int heads, int utterances, int processors) {
    const int wanted = (4 * processors + diagonals * heads - 1) / (diagonals * heads);
    return wanted < utterances ? wanted : utterances;
}

}  // namespace dmao
