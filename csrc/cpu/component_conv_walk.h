// How component_conv goes through the utterances: tiles of rows, and the windows around them.
#pragma once

#include <cstring>

#include "arena.h"
#include "correlate.h"
#include "dmao/component_conv.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTileRows = 64;

// Rows [first, first + count) of an utterance.
struct Tile {
    const Utterance* utterance;
    std::int64_t first, count;

    bool continues(const Tile& before) const {
        return utterance == before.utterance && first == before.first + before.count;
    }
};

std::int64_t input_width(const ComponentConv& f) {
    return f.gated ? 2 * f.stored_channels : f.stored_channels;
}

// An utterance is cut evenly, whatever its neighbours and the threads are.
std::int64_t tiles_of(const Utterance& utterance) { return divide_up(utterance.length, kTileRows); }

// The tile in which row `row` of the utterance lies.
std::int64_t tile_of(const Utterance& utterance, std::int64_t row) {
    return ((row + 1) * tiles_of(utterance) - 1) / utterance.length;
}

std::int64_t count_tiles(const ComponentConv& f) {
    std::int64_t tiles = 0;
    for (std::int64_t i = 0; i < f.utterance_count; ++i) tiles += tiles_of(f.utterances[i]);
    return tiles;
}

// body(tile, number of its utterance's first tile) for the tiles number begin to end.
template <class Body>
void each_tile(const ComponentConv& f, std::int64_t begin, std::int64_t end, const Body& body) {
    std::int64_t base = 0;
    for (const Utterance* u = f.utterances; base < end && u < f.utterances + f.utterance_count;
         ++u) {
        const std::int64_t tiles = tiles_of(*u), last = smaller(tiles, end - base);
        for (std::int64_t i = begin > base ? begin - base : 0; i < last; ++i) {
            const std::int64_t first = u->length * i / tiles;
            body(Tile{u, first, u->length * (i + 1) / tiles - first}, base);
        }
        base += tiles;
    }
}

// Zeroes the rows of `data` that belong to no utterance: this worker's share of the gaps.
void zero_gaps(const ComponentConv& f, void* data, std::int64_t row_bytes, std::int64_t worker,
               std::int64_t workers) {
    if (data == nullptr) return;
    const std::int64_t gaps = f.utterance_count + 1;
    for (std::int64_t i = gaps * worker / workers; i < gaps * (worker + 1) / workers; ++i) {
        const std::int64_t begin =
            i == 0 ? 0 : f.utterances[i - 1].first + f.utterances[i - 1].length;
        const std::int64_t end = i == f.utterance_count ? f.rows : f.utterances[i].first;
        std::memset(static_cast<char*>(data) + begin * row_bytes, 0, (end - begin) * row_bytes);
    }
}

// --- Rows of live channels, in float: whole vectors, zero beyond the last channel

// Between two rows: room for a vector at any channel, and an odd number of cache lines, so that a
// column of a window does not crowd into a few sets of the cache.
std::int64_t row_stride(std::int64_t channels) {
    return (divide_up(channels + Vec::width, 16) | 1) * 16;
}

// Element i of an array that may be absent.
template <class T>
T* offset(T* data, std::int64_t i) {
    return data == nullptr ? nullptr : data + i;
}

// body(channel, its place among the live ones, how many of them), at most a vector at a time.
template <class Body>
void each_vector(const ComponentConv& f, const Body& body) {
    std::int64_t place = 0;
    for (const ChannelRun* run = f.runs; run < f.runs + f.run_count; ++run) {
        for (std::int64_t i = 0; i < run->count; i += Vec::width) {
            body(run->first + i, place + i, smaller(Vec::width, run->count - i));
        }
        place += run->count;
    }
}

// row[place] = value(channel, place, count), a vector whose lanes beyond count are zero. Where a
// vector reaches into the next run, that run comes later.
template <class Value>
void gather(const ComponentConv& f, float* row, const Value& value) {
    store(row + (f.channels - 1) / Vec::width * Vec::width, Vec(0.0f));
    each_vector(f, [&](std::int64_t channel, std::int64_t place, std::int64_t count) {
        store(row + place, value(channel, place, count));
    });
}

// Zeroes a row of `width` elements of which not all channels will be written.
template <class T>
void zero_dead(const ComponentConv& f, T* row, std::int64_t width) {
    if (f.channels < f.stored_channels) std::memset(row, 0, width * sizeof(T));
}

// --- Windows

// The rows of a tile with those that its taps reach: `reach` before and after it, zero beyond the
// utterance's ends.
struct Window {
    std::int64_t reach, stride;
    float* data;

    Window(Arena& arena, const ComponentConv& f, bool wanted = true)
        : reach(f.taps / 2),
          stride(row_stride(f.channels)),
          data(wanted ? arena.take((kTileRows + 2 * reach) * stride) : nullptr) {}

    Rows column(std::int64_t channel) const { return {data + channel, stride}; }
    float* row(std::int64_t i) const { return offset(data, i * stride); }

    void zero(std::int64_t i) const {
        if (data != nullptr) std::memset(row(i), 0, stride * sizeof(float));
    }

    // Rows that the window of a tile has in common with that of the tile before go to its front.
    void slide(const Tile& before) const {
        if (data != nullptr)
            std::memmove(data, row(before.count), 2 * reach * stride * sizeof(float));
    }
};

// Moves windows from one tile to the next: fill(i, row of the utterance) for each row i that they
// do not have yet.
template <class Fill, class... Windows>
void advance(const Tile& before, const Tile& tile, const Fill& fill, const Window& window,
             const Windows&... others) {
    std::int64_t i = 0;
    if (tile.continues(before)) {
        window.slide(before);
        (others.slide(before), ...);
        i = 2 * window.reach;
    }
    for (; i < tile.count + 2 * window.reach; ++i) {
        const std::int64_t row = tile.first - window.reach + i;
        if (row >= 0 && row < tile.utterance->length) {
            fill(i, row);
        } else {
            window.zero(i);
            (others.zero(i), ...);
        }
    }
}

// --- Parameters of the live channels

struct Parameters {
    std::int64_t stride;
    float* taps;  // [taps][stride]
    float *bias, *gain, *shift, *share;

    Parameters(Arena& arena, const ComponentConv& f)
        : stride(row_stride(f.channels)),
          taps(arena.take(f.taps * stride)),
          bias(arena.take(stride)),
          gain(arena.take(stride)),
          shift(arena.take(stride)),
          share(arena.take(stride)) {}

    template <class T>
    void fill(const ComponentConv& f) const {
        const auto fill_row = [&](const void* source, float otherwise, float* row) {
            for (std::int64_t i = 0; i < stride; ++i) row[i] = source == nullptr ? otherwise : 0.0f;
            if (source == nullptr) return;
            gather(f, row, [&](std::int64_t channel, std::int64_t, std::int64_t count) {
                return load_some(static_cast<const T*>(source) + channel, count);
            });
        };
        fill_row(f.bias, 0.0f, bias);
        fill_row(f.norm_weight, 1.0f, gain);
        fill_row(f.norm_bias, 0.0f, shift);
        fill_row(nullptr, 0.0f, share);
        if (f.normed) std::memcpy(share, f.share, f.channels * sizeof(float));
        std::memset(taps, 0, f.taps * stride * sizeof(float));
        const T* weight = static_cast<const T*>(f.weight);
        each_vector(f, [&](std::int64_t channel, std::int64_t place, std::int64_t count) {
            for (std::int64_t q = 0; q < f.taps; ++q) {
                for (std::int64_t i = 0; i < count; ++i) {
                    taps[q * stride + place + i] = to_float(weight[(channel + i) * f.taps + q]);
                }
            }
        });
    }

    Rows forward_taps(std::int64_t channel) const { return {taps + channel, stride}; }
    Rows mirrored_taps(std::int64_t channel, std::int64_t count) const {
        return {taps + channel + (count - 1) * stride, -stride};
    }
};

}  // namespace
}  // namespace dmao::DMAO_ISA_NAMESPACE
