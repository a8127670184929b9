// GLU, depthwise convolution, norm over channels and activation in one pass over the utterances.
//
// Floor: with N rows of C live channels and k taps, the multiply-adds are
//     forward   2 N C k flops,   backward   4 N C k flops (input and taps)
// at the FMA peak, and beside them about 25 instructions per vector for each sigmoid (one of the
// gate and one of SiLU, in both directions). Bytes per element (float32): forward 8 of x, 4 of y
// and 4 that are kept; backward 8 + 4 + 4 read and 8 written.
//
// Forward: each worker walks over its tiles of rows. A window holds the gated input of a tile and
// of the rows that its taps reach, in float; it slides along, so that every row is gated once. The
// convolution (correlate.h) puts its output in the window's own rows, which it no longer needs;
// from there, in cache, it is normed, activated and written.
//
// Backward: kept are the normed output of the convolution and a scale per row, because convolving
// again would cost more than the 8 bytes per element of writing and reading them. Three windows
// slide along: gated inputs, their gates, and gradients of the convolution's output. They give,
// channel by channel in L1, the gradient of the taps, and that of the gated input, again in place.
//
// Sums over rows belong to spans of tiles, which do not depend on the number of threads, and are
// added up in order. A row at the border of two workers' parts is differentiated by both, but only
// the one that owns it adds it to the sums.
#include "dmao/component_conv.h"

#include <cstring>

#include "activation.h"
#include "component_conv_walk.h"

namespace dmao::DMAO_ISA_NAMESPACE {
namespace {

// --- Rows

struct Moments {
    float mean, scale;  // scale: 1 / standard deviation
};

// The sum of value(i) for i < count, in four chains: one would wait for each addition.
template <class Value>
Vec sum_vectors(std::int64_t count, const Value& value) {
    Vec sums[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
    std::int64_t i = 0;
    for (; i + 3 < count; i += 4) {
        for (int j = 0; j < 4; ++j) sums[j] = sums[j] + value(i + j);
    }
    for (; i < count; ++i) sums[0] = sums[0] + value(i);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The sum of value(i) over the vectors of `channels` channels.
template <class Value>
float sum_channels(std::int64_t channels, const Value& value) {
    constexpr int w = Vec::width;
    return sum(sum_vectors(divide_up(channels, w), [&](std::int64_t i) { return value(i * w); }));
}

Moments moments(const float* row, const float* share, std::int64_t channels, double eps) {
    const float mean =
        sum_channels(channels, [&](std::int64_t i) { return load(row + i) * load(share + i); });
    const float variance = sum_channels(channels, [&](std::int64_t i) {
        const Vec centred = load(row + i) - Vec(mean);
        return centred * centred * load(share + i);
    });
    return {mean, 1.0f / __builtin_sqrtf(variance + static_cast<float>(eps))};
}

// The gated input, and its gates unless null. Asks for the next row meanwhile.
template <class T>
void gate(const ComponentConv& f, const T* x, float* row, float* gates) {
    const T *next = x + input_width(f), *gates_in = x + f.stored_channels;
    gather(f, row, [&](std::int64_t channel, std::int64_t place, std::int64_t count) {
        prefetch(next + channel);
        const Vec value = load_some(x + channel, count);
        if (!f.gated) return value;
        prefetch(next + f.stored_channels + channel);
        const Vec open = sigmoid(load_some(gates_in + channel, count));
        if (gates != nullptr) store(gates + place, open);
        return value * open;
    });
}

// norm, in place, and activation of the convolution's output; keeps what the backward pass needs.
template <class T, class Activate>
void finish(const ComponentConv& f, const Parameters& p, float* row, T* kept, float* scale, T* y) {
    if (f.normed) {
        const Moments m = moments(row, p.share, f.channels, f.eps);
        if (scale != nullptr) *scale = m.scale;
        for (std::int64_t i = 0; i < f.channels; i += Vec::width) {
            store(row + i, (load(row + i) - Vec(m.mean)) * Vec(m.scale));
        }
    }
    if (kept != nullptr) {
        for (std::int64_t i = 0; i < f.channels; i += Vec::width) {
            store_some(kept + i, load(row + i), f.channels - i);
        }
    }
    zero_dead(f, y, f.stored_channels);
    each_vector(f, [&](std::int64_t channel, std::int64_t place, std::int64_t count) {
        const Vec h = fma(load(row + place), load(p.gain + place), load(p.shift + place));
        store_some(y + channel, Activate::value(h), count);
    });
}

// --- Forward

struct ForwardScratch {
    Arena arena;
    Parameters parameters;
    std::int64_t window_size;
    float* windows;

    ForwardScratch(const ComponentConv& f, const Workspace& workspace)
        : arena(workspace.scratch), parameters(arena, f) {
        Arena counter(nullptr);
        Window(counter, f);
        window_size = counter.used();
        windows = arena.take(window_size * workspace.workers);
    }
};

// Convolves the tile of a window, in place.
void convolve(const ComponentConv& f, const Parameters& p, const Window& window, const Tile& tile) {
    for (std::int64_t c = 0; c < f.channels; c += Vec::width) {
        const Vec bias = load(p.bias + c);
        correlate(tile.count, f.taps, window.column(c), p.forward_taps(c),
                  [&](std::int64_t i, Vec sum) { store(window.row(i) + c, sum + bias); });
    }
}

template <class T, class Activate>
void forward(const ComponentConvForward& problem, const Workspace& workspace,
             const ParallelFor& parallel) {
    const ComponentConv& f = problem.conv;
    const ForwardScratch scratch(f, workspace);
    const Parameters& p = scratch.parameters;
    p.fill<T>(f);
    const std::int64_t workers = workspace.workers;
    const std::int64_t width = input_width(f);
    const T* x = static_cast<const T*>(f.x);
    T *y = static_cast<T*>(problem.y), *kept = static_cast<T*>(problem.normed);

    const auto run = [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
        zero_gaps(f, y, f.stored_channels * sizeof(T), worker, workers);
        zero_gaps(f, kept, f.channels * sizeof(T), worker, workers);
        zero_gaps(f, problem.scales, sizeof(float), worker, workers);
        Arena own(scratch.windows + worker * scratch.window_size);
        const Window window(own, f);
        Tile before{nullptr, 0, 0};
        const auto run_tile = [&](const Tile& tile, std::int64_t) {
            const auto fill = [&](std::int64_t i, std::int64_t row) {
                gate(f, x + (tile.utterance->first + row) * width, window.row(i), nullptr);
            };
            advance(before, tile, fill, window);
            convolve(f, p, window, tile);
            for (std::int64_t i = 0; i < tile.count; ++i) {
                const std::int64_t row = tile.utterance->first + tile.first + i;
                finish<T, Activate>(f, p, window.row(i), offset(kept, row * f.channels),
                                    offset(problem.scales, row), y + row * f.stored_channels);
            }
            before = tile;
        };
        each_tile(f, begin, end, run_tile);
    };
    parallel.shares(count_tiles(f), workers, run);
}

// --- Backward

constexpr std::int64_t kSpans = 32;    // at most
constexpr std::int64_t kTileSums = 4;  // sums over every fourth row: shorter ones round less

// The sums over the rows of a span: taps, then bias, gain and shift.
struct SpanSums {
    std::int64_t taps, stride;
    float* data;

    std::int64_t rows() const { return taps + 3; }
    std::int64_t size() const { return rows() * stride; }
    SpanSums of(std::int64_t span) const { return {taps, stride, data + span * size()}; }
    float* row(std::int64_t i) const { return data + i * stride; }
    float* bias() const { return row(taps); }
    float* gain() const { return row(taps + 1); }
    float* shift() const { return row(taps + 2); }
};

struct BackwardBuffers {
    Window gated, gates, grads;
    float* discarded;  // sums of rows that another worker owns

    BackwardBuffers(Arena& arena, const ComponentConv& f)
        : gated(arena, f),
          gates(arena, f, f.gated),
          grads(arena, f),
          discarded(arena.take(2 * gated.stride)) {}
};

struct BackwardScratch {
    Arena arena;
    Parameters parameters;
    std::int64_t tiles, span_tiles, spans;
    SpanSums sums;
    float* tile_sums;  // [tiles][kTileSums][2][stride] of gain and shift
    std::int64_t buffer_size;
    float* buffers;

    BackwardScratch(const ComponentConv& f, const Workspace& workspace)
        : arena(workspace.scratch),
          parameters(arena, f),
          tiles(count_tiles(f)),
          span_tiles(tiles == 0 ? 1 : divide_up(tiles, kSpans)),
          spans(tiles == 0 ? 1 : divide_up(tiles, span_tiles)),
          sums{f.taps, parameters.stride, nullptr},
          tile_sums(arena.take(tiles * kTileSums * 2 * parameters.stride)) {
        sums.data = arena.take(spans * sums.size());
        Arena counter(nullptr);
        BackwardBuffers(counter, f);
        buffer_size = counter.used();
        buffers = arena.take(buffer_size * workspace.workers);
    }
};

// The gradient of one row of the convolution's output; adds to those of gain and shift. Asks for
// the next row meanwhile.
template <class T, class Activate>
void differentiate(const ComponentConv& f, const Parameters& p, const T* grad_y, const T* kept,
                   const float* scale, float* row, float* grad_gain, float* grad_shift) {
    gather(f, row, [&](std::int64_t channel, std::int64_t, std::int64_t count) {
        prefetch(grad_y + f.stored_channels + channel);
        return load_some(grad_y + channel, count);
    });
    if (kept == nullptr) return;
    Vec total(0.0f), product(0.0f);
    for (std::int64_t i = 0; i < f.channels; i += Vec::width) {
        prefetch(kept + f.channels + i);
        const Vec normed = load_some(kept + i, f.channels - i), gain = load(p.gain + i);
        const Vec slope = Activate::value_and_slope(fma(normed, gain, load(p.shift + i))).slope;
        const Vec grad = load(row + i) * slope;
        store(grad_shift + i, load(grad_shift + i) + grad);
        store(grad_gain + i, fma(grad, normed, load(grad_gain + i)));
        const Vec grad_normed = grad * gain;
        store(row + i, grad_normed);
        total = total + grad_normed;
        product = fma(grad_normed, normed, product);
    }
    if (!f.normed) return;
    const Vec sum_grads(sum(total)), sum_products(sum(product));
    for (std::int64_t i = 0; i < f.channels; i += Vec::width) {
        const Vec normed = load_some(kept + i, f.channels - i);
        const Vec through_statistics = fma(normed, sum_products, sum_grads) * load(p.share + i);
        store(row + i, (load(row + i) - through_statistics) * Vec(*scale));
    }
}

// From the gradient of the gated input to that of the input.
template <class T>
void ungate(const ComponentConv& f, const float* grad, const float* gated, const float* gates,
            T* grad_x) {
    zero_dead(f, grad_x, input_width(f));
    each_vector(f, [&](std::int64_t channel, std::int64_t place, std::int64_t count) {
        const Vec g = load(grad + place);
        if (!f.gated) return store_some(grad_x + channel, g, count);
        const Vec open = load(gates + place);
        store_some(grad_x + channel, g * open, count);
        store_some(grad_x + f.stored_channels + channel,
                   g * load(gated + place) * (Vec(1.0f) - open), count);
    });
}

void add_row(const float* row, std::int64_t count, float* sums) {
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        store(sums + i, load(sums + i) + load(row + i));
    }
}

// Gradients of the taps and the bias, added to the span's, and, in place, of the gated input.
void convolve_backward(const ComponentConv& f, const Parameters& p, const BackwardBuffers& buffers,
                       const Tile& tile, const SpanSums& sums) {
    const auto add = [](float* target, Vec value) { store(target, load(target) + value); };
    for (std::int64_t c = 0; c < f.channels; c += Vec::width) {
        const Rows grads = buffers.grads.column(c), inside = grads.from(buffers.grads.reach);
        correlate(f.taps, tile.count, buffers.gated.column(c), inside,
                  [&](std::int64_t q, Vec sum) { add(sums.row(q) + c, sum); });
        add(sums.bias() + c,
            sum_vectors(tile.count, [&](std::int64_t i) { return load(inside.at(i)); }));
        correlate(tile.count, f.taps, grads, p.mirrored_taps(c, f.taps),
                  [&](std::int64_t i, Vec sum) { store(buffers.grads.row(i) + c, sum); });
    }
}

// All that a worker does: the tiles of the spans [begin, end).
template <class T, class Activate>
void backward_spans(const ComponentConvBackward& problem, const BackwardScratch& scratch,
                    std::int64_t begin, std::int64_t end, const BackwardBuffers& buffers) {
    const ComponentConv& f = problem.conv;
    const Parameters& p = scratch.parameters;
    const std::int64_t width = input_width(f);
    const std::int64_t reach = buffers.grads.reach;
    const T *x = static_cast<const T*>(f.x), *kept = static_cast<const T*>(problem.normed);
    const T* grad_y = static_cast<const T*>(problem.grad_y);
    T* grad_x = static_cast<T*>(problem.grad_x);
    const std::int64_t first_tile = begin * scratch.span_tiles;
    const std::int64_t end_tile = smaller(end * scratch.span_tiles, scratch.tiles);

    std::memset(scratch.sums.of(begin).data, 0,
                (end - begin) * scratch.sums.size() * sizeof(float));
    const std::int64_t first_sum = first_tile * kTileSums, end_sum = end_tile * kTileSums;
    std::memset(scratch.tile_sums + first_sum * 2 * p.stride, 0,
                (end_sum - first_sum) * 2 * p.stride * sizeof(float));
    Tile before{nullptr, 0, 0};
    std::int64_t number = first_tile;
    each_tile(f, first_tile, end_tile, [&](const Tile& tile, std::int64_t base) {
        const Utterance& utterance = *tile.utterance;
        const auto fill = [&](std::int64_t i, std::int64_t place) {
            const std::int64_t row = utterance.first + place;
            gate(f, x + row * width, buffers.gated.row(i), buffers.gates.row(i));
            const std::int64_t owner = base + tile_of(utterance, place);
            const bool own = owner >= first_tile && owner < end_tile;
            float* grad_gain =
                own ? scratch.tile_sums + (owner * kTileSums + place % kTileSums) * 2 * p.stride
                    : buffers.discarded;
            differentiate<T, Activate>(f, p, grad_y + row * f.stored_channels,
                                       offset(kept, row * f.channels), offset(problem.scales, row),
                                       buffers.grads.row(i), grad_gain, grad_gain + p.stride);
        };
        advance(before, tile, fill, buffers.gated, buffers.gates, buffers.grads);
        convolve_backward(f, p, buffers, tile, scratch.sums.of(number++ / scratch.span_tiles));
        for (std::int64_t i = 0; i < tile.count; ++i) {
            ungate(f, buffers.grads.row(i), buffers.gated.row(i + reach),
                   buffers.gates.row(i + reach),
                   grad_x + (utterance.first + tile.first + i) * width);
        }
        before = tile;
    });
    for (std::int64_t i = first_sum; i < end_sum; ++i) {
        // Gain and shift are neighbours.
        add_row(scratch.tile_sums + i * 2 * p.stride, 2 * p.stride,
                scratch.sums.of(i / kTileSums / scratch.span_tiles).gain());
    }
}

// The sums of all spans into the gradients, each at its channel's stored place.
template <class T>
void store_sums(const ComponentConvBackward& problem, const BackwardScratch& scratch,
                const ParallelFor& parallel) {
    const ComponentConv& f = problem.conv;
    const SpanSums& sums = scratch.sums;
    parallel(sums.rows(), 4, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t span = 1; span < scratch.spans; ++span) {
            add_row(sums.of(span).row(begin), (end - begin) * sums.stride, sums.row(begin));
        }
    });
    const auto store_row = [&](const float* row, void* gradient) {
        if (gradient == nullptr) return;
        each_vector(f, [&](std::int64_t channel, std::int64_t place, std::int64_t count) {
            store_some(static_cast<T*>(gradient) + channel, load(row + place), count);
        });
    };
    store_row(sums.bias(), problem.grad_bias);
    store_row(sums.gain(), problem.grad_norm_weight);
    store_row(sums.shift(), problem.grad_norm_bias);
    T* grad_weight = static_cast<T*>(problem.grad_weight);
    each_vector(f, [&](std::int64_t channel, std::int64_t place, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int64_t q = 0; q < f.taps; ++q) {
                set(grad_weight[(channel + i) * f.taps + q], sums.row(q)[place + i]);
            }
        }
    });
}

template <class T, class Activate>
void backward(const ComponentConvBackward& problem, const Workspace& workspace,
              const ParallelFor& parallel) {
    const ComponentConv& f = problem.conv;
    const BackwardScratch scratch(f, workspace);
    scratch.parameters.fill<T>(f);
    const std::int64_t workers = workspace.workers;
    const std::int64_t width = input_width(f);
    const auto run = [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
        zero_gaps(f, problem.grad_x, width * sizeof(T), worker, workers);
        Arena own(scratch.buffers + worker * scratch.buffer_size);
        backward_spans<T, Activate>(problem, scratch, begin, end, BackwardBuffers(own, f));
    };
    parallel.shares(scratch.spans, workers, run);
    store_sums<T>(problem, scratch, parallel);
}

template <class Run>
void choose(const ComponentConv& f, const Run& run) {
    choose<Silu, Relu, Gelu, Identity>(f.dtype, f.activation, run);
}

}  // namespace

std::int64_t component_conv_forward_scratch(const ComponentConvForward& problem,
                                            std::int64_t workers) {
    return ForwardScratch(problem.conv, {nullptr, workers}).arena.used();
}

void component_conv_forward(const ComponentConvForward& problem, const Workspace& workspace,
                            const ParallelFor& parallel) {
    choose(problem.conv,
           [&]<class T, class Activate>() { forward<T, Activate>(problem, workspace, parallel); });
}

std::int64_t component_conv_backward_scratch(const ComponentConvBackward& problem,
                                             std::int64_t workers) {
    return BackwardScratch(problem.conv, {nullptr, workers}).arena.used();
}

void component_conv_backward(const ComponentConvBackward& problem, const Workspace& workspace,
                             const ParallelFor& parallel) {
    choose(problem.conv,
           [&]<class T, class Activate>() { backward<T, Activate>(problem, workspace, parallel); });
}

}  // namespace dmao::DMAO_ISA_NAMESPACE
