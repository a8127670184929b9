// component_ffn: y = dropout(act(x w1^T + b1)) w2^T + b2 over the live hidden units, and its
// gradients, as products of csrc/cuda/linear.cuh.
//
// Floor, with T tokens, n live hidden units, width d = d_out and e bytes an element:
//
//     forward   4 T n d flops;  x, y: 2 T d e bytes; hidden written and read: 2 T n e; kept: T n e
//     backward  8 T n d flops;  kept read, hidden and its gradient written, hidden read once and
//               the gradient three times (for grad_x, grad_w1, grad_b1): 7 T n e; x, y: 4 T d e
//
// The hidden layer and its gradient lie in memory by position, without what is dead.
#pragma once

#include "linear_launch.cuh"

namespace dmao {

template <class E>
struct FfnLayer {
    Rows<E> x, w1, w2;  // [tokens, d], [stored units, d], [d_out, stored units]
    LiveList live;      // of hidden units
    Activation activation;
    double p;                  // of dropout
    const std::int64_t* seed;  // on the device

    int positions() const { return live.most_positions(); }
    int stride() const { return round_up(positions(), kEight); }
};

template <class E>
struct FfnResults {
    E* y;               // [tokens, d_out]
    E* pre_activation;  // [tokens, positions], or null
};

// Null: not wanted. Of weights the entries of live units alone are written.
template <class E>
struct FfnGradients {
    E *x, *w1, *b1, *w2, *b2;
};

// What both directions begin with.
template <class E>
LinearProduct<E> over_hidden_units(LinearRun& run, const FfnLayer<E>& layer) {
    LinearProduct<E> p;
    p.rows = layer.x.rows;
    p.columns = layer.positions();
    p.listed = Axis::columns;
    p.list = layer.live;
    p.stride = layer.stride();
    p.pre_activation_stride = layer.positions();
    p.activation = layer.activation;
    if (layer.p == 0.0) return p;
    const int units = layer.live.elements;
    const int all_groups = (units + 127) / 128, width = static_cast<int>(layer.live.width.value);
    const int groups = layer.live.everything ? all_groups : (width + 126) / 128 + 1;
    const int quads = 4 * groups * (layer.live.everything ? 1 : layer.live.capacity);
    p.bits_width = 16 * all_groups;
    p.scale = static_cast<float>(1.0 / (1.0 - layer.p));
    auto* bits = run.take<unsigned char>(static_cast<std::int64_t>(p.rows) * p.bits_width);
    p.bits = bits;
    run.launch<dropout_bits_kernel<kRowThreads>>(
        thread_blocks(p.rows, quads), 1, kRowThreads, 0, layer.seed, layer.live,
        dropout_threshold(layer.p), p.rows, groups, Divisor(quads), bits, p.bits_width);
    return p;
}

// w2 by element where chunks of its rows are of one component and aligned, else by position.
template <class E>
void take_w2(LinearRun& run, const FfnLayer<E>& layer, LinearProduct<E>& p) {
    const bool chunks =
        layer.live.everything || static_cast<int>(layer.live.width.value) % kPerChunk<E> == 0;
    p.b_by_element = chunks && layer.w2.is_aligned();
    p.b = p.b_by_element ? aligned(run, layer.w2) : copy_columns(run, layer.w2, layer.live);
}

template <class E>
void component_ffn_forward(LinearRun& run, const FfnLayer<E>& layer, const E* b1, const E* b2,
                           const FfnResults<E>& results) {
    LinearProduct<E> inner = over_hidden_units(run, layer);
    inner.a = aligned(run, layer.x);
    inner.b = aligned(run, layer.w1);
    inner.b_by_element = true;
    inner.depth = layer.x.columns;
    inner.bias = b1;
    inner.pre_activation = results.pre_activation;
    inner.result = run.take<E>(static_cast<std::int64_t>(layer.x.rows) * layer.stride());
    multiply<Pass::forward>(run, inner);

    LinearProduct<E> outer;
    outer.a = {inner.result, layer.stride()};
    take_w2(run, layer, outer);
    outer.rows = layer.x.rows;
    outer.columns = outer.stride = layer.w2.rows;
    outer.depth = layer.positions();
    outer.listed = Axis::depth;
    outer.list = layer.live;
    outer.bias = b2;
    outer.result = results.y;
    multiply<Pass::forward>(run, outer);
}

template <class E>
void component_ffn_backward(LinearRun& run, const FfnLayer<E>& layer, const Rows<E>& grad_y,
                            const E* pre_activation, const FfnGradients<E>& grads) {
    const int tokens = layer.x.rows, positions = layer.positions();
    const std::int64_t hidden_size = static_cast<std::int64_t>(tokens) * layer.stride();
    const Matrix<E> outside = aligned(run, grad_y);
    LinearProduct<E> inner = over_hidden_units(run, layer);
    inner.a = outside;
    inner.pre_activation = const_cast<E*>(pre_activation);  // is read here
    if (grads.x != nullptr || grads.w1 != nullptr || grads.b1 != nullptr) {
        inner.result = run.take<E>(hidden_size);
        inner.depth = grad_y.columns;
        take_w2(run, layer, inner);
    }
    if (grads.w2 != nullptr) inner.hidden = run.take<E>(hidden_size);
    const Matrix<E> grad_hidden{inner.result, layer.stride()};
    if (inner.result != nullptr || inner.hidden != nullptr) {
        multiply<Pass::backward>(run, inner);
    }

    if (grads.x != nullptr) {
        LinearProduct<E> p;
        p.a = grad_hidden;
        p.b = aligned(run, layer.w1);
        p.b_by_element = true;
        p.rows = tokens;
        p.columns = p.stride = layer.x.columns;
        p.depth = positions;
        p.listed = Axis::depth;
        p.list = layer.live;
        p.result = grads.x;
        multiply<Pass::backward>(run, p);
    }
    LinearProduct<E> weights;  // what both have in common
    weights.depth = tokens;
    weights.list = layer.live;
    weights.result_by_element = true;
    if (grads.w1 != nullptr) {
        LinearProduct<E> p = weights;
        p.a = grad_hidden;
        p.b = aligned(run, layer.x);
        p.rows = positions;
        p.columns = p.stride = layer.x.columns;
        p.listed = Axis::rows;
        p.result = grads.w1;
        multiply_weights(run, p);
    }
    if (grads.w2 != nullptr) {
        LinearProduct<E> p = weights;
        p.a = outside;
        p.b = {inner.hidden, layer.stride()};
        p.rows = grad_y.columns;
        p.columns = positions;
        p.stride = layer.live.elements;
        p.listed = Axis::columns;
        p.result = grads.w2;
        multiply_weights(run, p);
    }
    if (grads.b1 != nullptr) sum_columns(run, grad_hidden, tokens, layer.live, grads.b1);
    if (grads.b2 != nullptr) {
        sum_columns(run, outside, tokens, LiveList::all(grad_y.columns), grads.b2);
    }
}

}  // namespace dmao
