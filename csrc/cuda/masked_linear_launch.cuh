// masked_linear: y = act(x w^T + b) over the live blocks of w, and its gradients, as products of
// csrc/cuda/linear.cuh.
//
// Floor, with T tokens, n live elements of w and e bytes an element:
//
//     2 T n flops for each of y, grad_x and grad_w
//     bytes: x and y once each, T (d + d_out) e; pre-activations and their gradient 3 T d_out e
//
// A tile is as wide as a row of blocks, or part of one, and goes through its live blocks as if they
// were neighbours. So x is read once per live block: with a tenth of the blocks of 16 alive 16
// flops per byte of L2 are the limit of masks so fine.
#pragma once

#include "linear_launch.cuh"
#include "masked_linear.cuh"

namespace dmao {

// The live blocks, by rows of the grid or by its columns.
struct BlockLines {
    const std::int32_t *offsets, *ids;
};

template <class E>
struct MaskedLinearLayer {
    Rows<E> x, w;  // [tokens, d], [d_out, d]
    int block;     // 0: everything lives, and there are no lines
    int capacity;  // of both lists
    BlockLines rows, columns;
    Activation activation;

    // The inputs of a row of blocks, or with `elements` d_out the outputs of a column.
    LiveList list(const BlockLines& lines, int elements) const {
        LiveList list = LiveList::all(elements);
        if (block == 0) return list;
        list.everything = false;
        list.ids = lines.ids;
        list.offsets = lines.offsets;
        list.capacity = capacity;
        list.things = (elements + block - 1) / block;
        list.width = Divisor(block);
        return list;
    }
    // What a product over one of the lists begins with.
    LinearProduct<E> over(const LiveList& list, Axis listed, Axis cut) const {
        LinearProduct<E> p;
        p.listed = listed;
        p.list = list;
        if (block == 0) return p;
        p.cut = cut;
        p.block = Divisor(block);
        p.a_by_element = p.b_by_element = true;
        return p;
    }
};

// pre_activation: [tokens, d_out], or null.
template <class E>
void masked_linear_forward(LinearRun& run, const MaskedLinearLayer<E>& layer, const E* bias, E* y,
                           E* pre_activation) {
    const int tokens = layer.x.rows, outputs = layer.w.rows, inputs = layer.x.columns;
    const bool gated = layer.activation == Activation::glu, masked = layer.block != 0;
    LinearProduct<E> p = layer.over(layer.list(layer.rows, inputs), Axis::depth, Axis::columns);
    p.a = aligned(run, layer.x);
    p.b = aligned(run, layer.w);
    p.rows = tokens;
    p.columns = p.stride = p.pre_activation_stride = outputs;
    p.depth = p.list.most_positions();
    p.bias = bias;
    p.result = y;
    if (gated && masked) {  // values and gates may have different blocks
        p.result = pre_activation != nullptr
                       ? pre_activation
                       : run.take<E>(static_cast<std::int64_t>(tokens) * outputs);
        multiply<Pass::forward>(run, p);
        const int width = outputs / 2;
        run.launch<glu_kernel<E>>(row_blocks(tokens, width), 1, kRowThreads, 0,
                                  static_cast<const E*>(p.result), y, tokens, width,
                                  eights_of(width));
        return;
    }
    p.pre_activation = pre_activation;
    p.activation = layer.activation;
    if (gated) {
        p.gates = p.stride = outputs / 2;
        p.columns = round_up(p.gates, kEight) * 2;
    }
    multiply<Pass::forward>(run, p);
}

// Null: not wanted. Of grad_w what lives is written.
template <class E>
void masked_linear_backward(LinearRun& run, const MaskedLinearLayer<E>& layer,
                            const Rows<E>& grad_y, const E* pre_activation, E* grad_x, E* grad_w,
                            E* grad_b) {
    const int tokens = layer.x.rows, outputs = layer.w.rows, inputs = layer.x.columns;
    Matrix<E> grad = aligned(run, grad_y);
    if (layer.activation != Activation::none) {
        const int stride = round_up(outputs, kEight);
        const int width = grad_y.columns;
        E* inner = run.take<E>(static_cast<std::int64_t>(tokens) * stride);
        run.launch<activation_gradient_kernel<E>>(row_blocks(tokens, width), 1, kRowThreads, 0,
                                                  grad, pre_activation, inner, stride, tokens,
                                                  width, layer.activation, eights_of(width));
        grad = {inner, stride};
    }
    if (grad_x != nullptr) {
        LinearProduct<E> p =
            layer.over(layer.list(layer.columns, outputs), Axis::depth, Axis::columns);
        p.a = grad;
        p.b = aligned(run, layer.w);
        p.rows = tokens;
        p.columns = p.stride = inputs;
        p.depth = p.list.most_positions();
        p.result = grad_x;
        multiply<Pass::backward>(run, p);
    }
    if (grad_w != nullptr) {
        LinearProduct<E> p = layer.over(layer.list(layer.rows, inputs), Axis::columns, Axis::rows);
        p.a = grad;
        p.a_by_element = false;
        p.b = aligned(run, layer.x);
        p.rows = outputs;
        p.columns = p.list.most_positions();
        p.stride = inputs;
        p.depth = tokens;
        p.result_by_element = true;
        p.result = grad_w;
        multiply_weights(run, p);
    }
    if (grad_b != nullptr) sum_columns(run, grad, tokens, LiveList::all(outputs), grad_b);
}

}  // namespace dmao
