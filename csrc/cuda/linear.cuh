// The product behind masked_linear and component_ffn, forward and backward: sums over k of
// a(row, k) b(column, k), where a list on the device names what lives along one of the three axes,
// and what becomes of a sum: bias, activation and dropout, or their gradients, or part of a sum
// over tokens.
//
// Floor: 2 rows columns k flops of what lives; a and b read once per tile of the result: with
// tiles of 128 x 128 in bfloat16 64 flops per byte from L2, as many as an A100 can multiply.
#pragma once

#include "activation.cuh"
#include "linear_sources.cuh"
#include "vectors.cuh"

namespace dmao {

enum class Axis : std::int32_t { none, rows, columns, depth };

// Parts of the name of a kernel. forward: both matrices go along k (x and w). backward: b goes
// across it (grad_y and w). weights: both go across it, for k are tokens.
enum class Pass : std::int32_t { forward, backward, weights };

// kBlocks: how many of them are to run on a processor at a time.
template <int rows, int columns, int warp_rows, int warp_columns, int stages, int blocks>
struct TileShape {
    static constexpr int kRows = rows, kColumns = columns;
    static constexpr int kThreads = 32 * warp_rows * warp_columns, kBlocks = blocks;
    template <class E>
    static constexpr int kDepth = 64 / static_cast<int>(sizeof(E));  // of a step

    template <class E, Pass pass>
    using Product =
        TileProduct<E, pass == Pass::weights ? Layout::lines_across : Layout::lines_of_k,
                    pass == Pass::forward ? Layout::lines_of_k : Layout::lines_across, rows,
                    columns, kDepth<E>, warp_rows, warp_columns, stages>;
};

template <class E>
struct LinearProduct {
    Matrix<E> a{}, b{};
    int rows = 0, columns = 0, depth = 0;  // of the listed axis: positions that there may be

    // The listed axis, and which matrices have it by element; others have it by position.
    Axis listed = Axis::none;
    LiveList list;
    bool a_by_element = false, b_by_element = false, result_by_element = false;
    // Rows or columns may be cut into blocks of `block`, each with a line of the list.
    Axis cut = Axis::none;
    Divisor block;

    // Forward: result = dropout(activation(sums + bias)), pre_activation = sums + bias.
    // Backward, with pre_activation: result = sums dropout'(activation'(pre_activation)), and
    // hidden = dropout(activation(pre_activation)) once more.
    E* result = nullptr;  // this and the following may be null: not wanted
    int stride = 0;
    E* pre_activation = nullptr;
    int pre_activation_stride = 0;
    E* hidden = nullptr;      // like result
    const E* bias = nullptr;  // of columns, by element
    Activation activation = Activation::none;
    // Forward with glu: columns 16 i to 16 i + 7 are the values 8 i ..., the next eight the gates
    // behind `gates` values.
    int gates = 0;
    // Of dropout: row r keeps element j iff bit j / 16 % 8 of byte j / 128 * 16 + j % 16 is set.
    const unsigned char* bits = nullptr;
    int bits_width = 0;
    float scale = 1.0f;

    // Weights: plane p takes the sums over tokens [p span, (p + 1) span), by position; one plane
    // is the result. Planes are `columns` rounded up to 8 wide.
    float* planes = nullptr;
    int plane_count = 1, span = 0;

    __device__ __forceinline__ int plane_stride() const { return (columns + 7) / 8 * 8; }
};

// Blocks of threads that run at a time should share rows of a and fit b into L2: they walk through
// so many tiles of columns, row by row of tiles.
inline constexpr int kColumnGroup = 16;

// A tile of the result: its place, and the line of the list that holds for it.
struct TilePlace {
    Range rows, columns;
    int line = 0;

    template <class E>
    __device__ __forceinline__ TilePlace(const LinearProduct<E>& p, int high, int wide, int at) {
        const int row_tiles = tiles(p, Axis::rows, p.rows, high);
        const int column_tiles = tiles(p, Axis::columns, p.columns, wide);
        const int group = at / (row_tiles * kColumnGroup);
        const int first = group * kColumnGroup, rest = at - row_tiles * first;
        const int others = column_tiles - first;
        const int together = others < kColumnGroup ? others : kColumnGroup;
        rows = range(p, Axis::rows, rest / together, p.rows, high);
        columns = range(p, Axis::columns, first + rest % together, p.columns, wide);
    }

    // How many tiles an axis takes.
    template <class E>
    __host__ __device__ static __forceinline__ int tiles(const LinearProduct<E>& p, Axis axis,
                                                         int size, int tile) {
        if (p.cut != axis) return (size + tile - 1) / tile;
        const int block = static_cast<int>(p.block.value);
        return (size + block - 1) / block * ((block + tile - 1) / tile);
    }

  private:
    template <class E>
    __device__ __forceinline__ Range range(const LinearProduct<E>& p, Axis axis, int index,
                                           int size, int tile) {
        if (p.cut != axis) return {index * tile, size};
        const int block = static_cast<int>(p.block.value), parts = (block + tile - 1) / tile;
        line = index / parts;
        const int end = (line + 1) * block;
        return {line * block + (index - line * parts) * tile, end < size ? end : size};
    }
};

// Eight neighbouring columns of the result from a position on.
struct EightColumns {
    int position, count;
    bool together;  // their elements are neighbours, too
    int element;    // of the first

    __device__ __forceinline__ EightColumns(const Live& live, bool listed, int from, int end)
        : position(from),
          count(end - from < kEight ? end - from : kEight),
          together(true),
          element(from) {
        if (!listed) return;
        together = live.keeps_together(kEight);
        element = live.element(from);
        if (together && live.elements - element < count) count = live.elements - element;
    }
    __device__ __forceinline__ bool all() const { return count == kEight; }

    // visit(i, element) for each of them that there is.
    template <class Visit>
    __device__ __forceinline__ void each(const Live& live, const Visit& visit) const {
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            if (i >= count) continue;
            const int at = together ? element + i : live.element(position + i);
            if (together || at < live.elements) visit(i, at);
        }
    }
};

__device__ __forceinline__ bool is_aligned(int stride) { return stride % kEight == 0; }

// What dropout makes of a row's factor for eight columns.
template <class E>
__device__ __forceinline__ void drop(const LinearProduct<E>& p, const Live& live,
                                     const EightColumns& eight, int row, float (&factors)[kEight]) {
    if (p.bits == nullptr) return;
    const unsigned char* bits = p.bits + static_cast<std::int64_t>(row) * p.bits_width;
    const auto byte_of = [](int element) { return element / 128 * 16 + element % 16; };
    if (eight.together && eight.element % kEight == 0) {
        const uint2 bytes = *reinterpret_cast<const uint2*>(bits + byte_of(eight.element));
        const int shift = eight.element / 16 % 8;
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
            const unsigned word = i < 4 ? bytes.x : bytes.y;
            factors[i] = (word >> (i % 4 * 8 + shift) & 1) != 0 ? factors[i] * p.scale : 0.0f;
        }
    } else {
        eight.each(live, [&](int i, int element) {
            const bool kept = (bits[byte_of(element)] >> (element / 16 % 8) & 1) != 0;
            factors[i] = kept ? factors[i] * p.scale : 0.0f;
        });
    }
}

// Results by position of listed columns, which have room for it, are filled up with zeros to whole
// chunks: products over them read those.
template <class E>
__device__ __forceinline__ void store_padded(const LinearProduct<E>& p, E* target,
                                             const EightColumns& eight, int row, int column,
                                             float (&values)[kEight]) {
    const bool whole = (eight.all() || p.listed == Axis::columns) && is_aligned(p.stride);
#pragma unroll
    for (int i = 0; i < kEight; ++i) values[i] = i < eight.count ? values[i] : 0.0f;
    store_eight(target + static_cast<std::int64_t>(row) * p.stride + column, eight.count, whole,
                values);
}

template <class E>
__device__ __forceinline__ void finish_forward(const LinearProduct<E>& p, const Live& live, int row,
                                               int column, int end, float (&values)[kEight]) {
    const EightColumns eight(live, p.listed == Axis::columns, column, end);
    if (p.bias != nullptr) {
        eight.each(live, [&](int i, int element) { values[i] += ptx::widen(p.bias[element]); });
    }
    if (p.pre_activation != nullptr) {
        store_eight(
            p.pre_activation + static_cast<std::int64_t>(row) * p.pre_activation_stride + column,
            eight.count, eight.all() && is_aligned(p.pre_activation_stride), values);
    }
    activate(p.activation, values);
    drop(p, live, eight, row, values);
    store_padded(p, p.result, eight, row, column, values);
}

// Eight values and their gates, `column` a multiple of 16.
template <class E>
__device__ __forceinline__ void finish_gated(const LinearProduct<E>& p, int row, int column,
                                             const float* run) {
    const int first = column / 2, left = p.gates - first;
    const int count = left < kEight ? left : kEight;
    if (count <= 0) return;
    float values[kEight], gates[kEight];
    load_eight(run, kEight, true, values);
    load_eight(run + kEight, kEight, true, gates);
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
        const bool biased = p.bias != nullptr && i < count;
        values[i] += biased ? ptx::widen(p.bias[first + i]) : 0.0f;
        gates[i] += biased ? ptx::widen(p.bias[p.gates + first + i]) : 0.0f;
    }
    const bool all = count == kEight;
    if (p.pre_activation != nullptr) {
        E* kept = p.pre_activation + static_cast<std::int64_t>(row) * p.pre_activation_stride;
        const bool whole = all && is_aligned(p.pre_activation_stride);
        store_eight(kept + first, count, whole, values);
        store_eight(kept + p.gates + first, count, whole && is_aligned(p.gates), gates);
    }
#pragma unroll
    for (int i = 0; i < kEight; ++i) values[i] *= sigmoid(gates[i]);
    store_eight(p.result + static_cast<std::int64_t>(row) * p.stride + first, count,
                all && is_aligned(p.stride), values);
}

template <class E>
__device__ __forceinline__ void finish_backward(const LinearProduct<E>& p, const Live& live,
                                                int row, int column, int end, const float* run) {
    const EightColumns eight(live, p.listed == Axis::columns, column, end);
    const auto load_pre_activation = [&](float (&h)[kEight]) {
        load_eight(
            p.pre_activation + static_cast<std::int64_t>(row) * p.pre_activation_stride + column,
            eight.count, eight.all() && is_aligned(p.pre_activation_stride), h);
    };
    float values[kEight];
    if (p.result != nullptr) {
        float factors[kEight];
#pragma unroll
        for (float& factor : factors) factor = 1.0f;
        if (p.pre_activation != nullptr) {
            load_pre_activation(factors);
            replace_by_slope(p.activation, factors);
            drop(p, live, eight, row, factors);
        }
        load_eight(run, kEight, true, values);  // not before registers are free for them
#pragma unroll
        for (int i = 0; i < kEight; ++i) values[i] *= factors[i];
        store_padded(p, p.result, eight, row, column, values);
    }
    if (p.hidden != nullptr) {
        load_pre_activation(values);
        activate(p.activation, values);
        drop(p, live, eight, row, values);
        store_padded(p, p.hidden, eight, row, column, values);
    }
}

// Stores eight neighbouring sums by element.
template <class E>
__device__ __forceinline__ void finish_weights(const LinearProduct<E>& p, const Live& live, int row,
                                               int column, int end, const float (&values)[kEight]) {
    const bool rows_listed = p.result_by_element && p.listed == Axis::rows;
    const EightColumns eight(live, p.result_by_element && p.listed == Axis::columns, column, end);
    E* target =
        p.result + static_cast<std::int64_t>(rows_listed ? live.element(row) : row) * p.stride;
    if (eight.together) {
        store_eight(target + eight.element, eight.count, eight.all() && is_aligned(p.stride),
                    values);
    } else {
        eight.each(live, [&](int i, int element) { target[element] = ptx::narrow<E>(values[i]); });
    }
}

// gathered: depth is the listed axis, and b has it by element.
template <class E, Pass pass, class Shape, bool gathered>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    linear_kernel(const LinearProduct<E> p) {
    using Product = typename Shape::template Product<E, pass>;
    constexpr int threads = Shape::kThreads;
    DMAO_DYNAMIC_SHARED(shared);
    TilePlace place(p, Shape::kRows, Shape::kColumns, static_cast<int>(blockIdx.x));
    const Live live = p.list.of_line(place.line);
    Range k{0, p.depth};
    if constexpr (pass == Pass::weights) {
        k.begin = static_cast<int>(blockIdx.y) * p.span;
        k.end = p.depth - k.begin < p.span ? p.depth : k.begin + p.span;
    }
    const auto clip = [&](Range& range, Axis axis) {
        if (p.listed == axis && live.positions < range.end) range.end = live.positions;
    };
    clip(place.rows, Axis::rows);
    clip(place.columns, Axis::columns);
    clip(k, Axis::depth);
    if (place.rows.begin >= place.rows.end || place.columns.begin >= place.columns.end) return;

    constexpr int step = Shape::template kDepth<E>;
    const int steps = k.end > k.begin ? (k.end - k.begin + step - 1) / step : 0;
    // The element of a position of the listed rows or columns; negative if there is none.
    const auto element_of = [&](Axis axis, bool by_element) {
        return [&live, lookup = by_element && p.listed == axis](int position) {
            if (!lookup) return position;
            const int element = live.element(position);
            return element < live.elements ? element : -1;
        };
    };
    using TileA = typename Product::A;
    using TileB = typename Product::B;
    const auto rows_of_a = element_of(Axis::rows, p.a_by_element);
    const auto columns_of_b = element_of(Axis::columns, p.b_by_element);

    Product product;
    if constexpr (pass == Pass::weights) {
        SourceAcross<E, TileA, threads, false> a(p.a, live, place.rows, k, rows_of_a);
        SourceAcross<E, TileB, threads, false> b(p.b, live, place.columns, k, columns_of_b);
        product.add(shared, steps, [&](int) { return a.next(); }, [&](int) { return b.next(); });
    } else {
        WalkAlong<E, gathered, TileA::kChunks> walk(live, k);
        const SourceAlong<E, TileA, threads> a(p.a, place.rows, rows_of_a);
        const auto next_of_a = [&](int) {
            walk.advance();
            return a.at(p.a_by_element ? walk.element : walk.position, walk.inside);
        };
        if constexpr (pass == Pass::backward) {
            SourceAcross<E, TileB, threads, gathered> b(p.b, live, place.columns, k, columns_of_b);
            product.add(shared, steps, next_of_a, [&](int) { return b.next(); });
        } else {
            static_assert(TileA::kChunks == TileB::kChunks);
            const SourceAlong<E, TileB, threads> b(p.b, place.columns, [&](int position) {
                if (p.gates == 0) return columns_of_b(position);
                const int at = position / 16 * 8 + position % 8;
                return at >= p.gates ? -1 : position % 16 < 8 ? at : p.gates + at;
            });
            product.add(shared, steps, next_of_a,
                        [&](int) { return b.at(walk.element, walk.inside); });
        }
    }

    // finish(row, column, run) of what is inside.
    const auto visit_inside = [&](const auto& finish) {
        return [&](int row, int column, const float* run) {
            row += place.rows.begin;
            column += place.columns.begin;
            if (row < place.rows.end && column < place.columns.end) finish(row, column, run);
        };
    };
    if constexpr (pass == Pass::forward) {
        if (p.gates > 0) {
            const auto finish = [&](int row, int column, const float* run) {
                finish_gated(p, row, column, run);
            };
            return product.template visit_runs<2 * kEight>(shared, visit_inside(finish));
        }
    }
    const auto finish = [&](int row, int column, const float* run) {
        const int end = place.columns.end;
        if constexpr (pass == Pass::backward) {
            finish_backward(p, live, row, column, end, run);
        } else {
            float sums[kEight];
            load_eight(run, kEight, true, sums);
            if constexpr (pass == Pass::forward) {
                finish_forward(p, live, row, column, end, sums);
            } else if (p.planes == nullptr) {
                finish_weights(p, live, row, column, end, sums);
            } else {
                const std::int64_t line = static_cast<std::int64_t>(blockIdx.y) * p.rows + row;
                store_eight(p.planes + line * p.plane_stride() + column, kEight, true, sums);
            }
        }
    };
    product.template visit_runs<kEight>(shared, visit_inside(finish));
}

// The second pass of sums over tokens: one row of the planes per block of threads and so many
// columns; planes in their order.
inline constexpr int kPlaneThreads = 64;

template <class E>
__global__ void __launch_bounds__(kPlaneThreads) sum_planes_kernel(const LinearProduct<E> p) {
    constexpr int columns = kPlaneThreads * kEight;
    const int parts = (p.columns + columns - 1) / columns;
    const int row = static_cast<int>(blockIdx.x) / parts;
    const int column =
        static_cast<int>(blockIdx.x) % parts * columns + static_cast<int>(threadIdx.x) * kEight;
    const Live live =
        p.list.of_line(p.cut == Axis::rows ? row / static_cast<int>(p.block.value) : 0);
    const int row_end = p.listed == Axis::rows ? live.positions : p.rows;
    const int column_end =
        p.listed == Axis::columns && live.positions < p.columns ? live.positions : p.columns;
    if (row >= row_end || column >= column_end) return;
    float sums[kEight] = {};
    const float* at = p.planes + static_cast<std::int64_t>(row) * p.plane_stride() + column;
    for (int plane = 0; plane < p.plane_count; ++plane) {
        float part[kEight];
        load_eight(at, kEight, true, part);
#pragma unroll
        for (int i = 0; i < kEight; ++i) sums[i] += part[i];
        at += static_cast<std::int64_t>(p.rows) * p.plane_stride();
    }
    finish_weights(p, live, row, column, column_end, sums);
}

}  // namespace dmao
