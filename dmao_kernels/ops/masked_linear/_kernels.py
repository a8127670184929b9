"""The Triton kernels of masked_linear: products over the live blocks of w, and the activations around them.

Floor, with T tokens, n live elements of w and e bytes an element, at the peaks of the chip:

    2 T n flops for each of y, grad_x and grad_w
    bytes: x and y once each, T (d + d_out) e; kept and the gradient of the pre-activations 3 T d_out e

A tile of tokens times one row of blocks (of columns, for grad_x) goes through the live blocks of that row as if they
were neighbours: a step takes as many elements as fit, whatever the edge of a block. One row is as wide as a block, so
that x is read once per live block: at a density of 10 % and blocks of 16, 16 flops per byte of L2, which is the limit
of masks so fine. grad_w takes the live blocks of a row as rows of one tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmao_kernels.ops._triton.activation import activate, slope
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.products import add_products, add_products_of_tokens, elements


@triton.jit
def _block_row(tile, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The row of blocks to which a tile of outputs belongs."""
    return tile // tl.cdiv(BLOCK, COLUMNS)


@triton.jit
def _live_inputs(offsets, tile, capacity, inputs, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the list of a tile's row of blocks begins, and how many inputs it names: all without a mask."""
    begin = 0
    depth = inputs
    if offsets is not None:
        line = _block_row(tile, BLOCK, COLUMNS)
        begin = tl.minimum(tl.maximum(tl.load(offsets + line), 0), capacity)
        depth = (tl.minimum(tl.load(offsets + line + 1), capacity) - begin) * BLOCK
    return begin, depth


@triton.jit
def _outputs(tile, outputs, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The outputs of a tile, a block or part of one, and which of them there are; BLOCK is 0 without a mask."""
    column = tl.arange(0, COLUMNS)
    if BLOCK == 0:
        output = tile * COLUMNS + column
        inside = output < outputs
    else:
        row = _block_row(tile, BLOCK, COLUMNS)
        within = (tile - row * tl.cdiv(BLOCK, COLUMNS)) * COLUMNS + column
        output = row * BLOCK + within
        inside = (within < BLOCK) & (output < outputs)
    return output, inside


@kernel(varying=["tokens", "capacity", "blocks"])
def product_kernel(
    x,
    x_stride,
    w,
    w_output_stride,
    w_input_stride,
    bias,
    offsets,
    ids,
    pre_activation,
    y,
    tokens,
    inputs,
    outputs,
    tiles,
    capacity,
    blocks,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """y = act(x w^T + bias) for a tile of tokens and outputs; pre_activation (or None) keeps the sums.

    "glu" (without a mask only) takes values and gates by turns, so that one thread holds both.
    """
    GATED: tl.constexpr = ACTIVATION == "glu"
    tile = tl.program_id(0) % tiles
    token = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    output, column_inside = _outputs(tile, outputs, BLOCK, COLUMNS)
    half = outputs // 2
    if GATED:
        output = output // 2 + output % 2 * half
    row_inside = token < tokens
    row = token.to(tl.int64)[:, None]
    begin, depth = _live_inputs(offsets, tile, capacity, inputs, BLOCK, COLUMNS)
    sums = add_products(
        tl.zeros([ROWS, COLUMNS], tl.float32),
        x + row * x_stride,
        row_inside[:, None],
        w + output[None, :] * w_output_stride,
        w_input_stride,
        column_inside[None, :],
        depth,
        None if ids is None else ids + begin,
        blocks,
        inputs,
        BLOCK,
        VECTOR,
        True,
        STEP,
        PRECISION,
    )
    if bias is not None:
        sums += tl.load(bias + output, mask=column_inside, other=0.0).to(tl.float32)[None, :]
    if GATED:
        values, gates = tl.split(sums.reshape(ROWS, COLUMNS // 2, 2))
        output = tile * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
        inside = row_inside[:, None] & (output < half)[None, :]
        if pre_activation is not None:
            at = pre_activation + row * outputs + output[None, :]
            tl.store(at, values.to(y.dtype.element_ty), mask=inside)
            tl.store(at + half, gates.to(y.dtype.element_ty), mask=inside)
        tl.store(y + row * half + output[None, :], (values * tl.sigmoid(gates)).to(y.dtype.element_ty), mask=inside)
    else:
        inside = row_inside[:, None] & column_inside[None, :]
        at = row * outputs + output[None, :]
        if pre_activation is not None:
            tl.store(pre_activation + at, sums.to(y.dtype.element_ty), mask=inside)
        tl.store(y + at, activate(sums, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@kernel(varying=["tokens", "plane", "span", "capacity", "blocks"])
def weight_gradient_kernel(
    x,
    x_stride,
    grad,
    grad_stride,
    offsets,
    ids,
    grad_w,
    plane,
    tokens,
    span,
    inputs,
    outputs,
    tiles,
    capacity,
    blocks,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """x^T grad over a span of tokens, for some live inputs of a row of blocks; a plane of grad_w per span."""
    tile = tl.program_id(0) % tiles
    listed, depth = _live_inputs(offsets, tile, capacity, inputs, BLOCK, COLUMNS)
    first = tl.program_id(0) // tiles * ROWS
    if first >= depth:
        return
    position = first + tl.arange(0, ROWS)
    element = elements(None if ids is None else ids + listed, position, position < depth, blocks, BLOCK, VECTOR)
    row_inside = (position < depth) & (element < inputs)
    output, column_inside = _outputs(tile, outputs, BLOCK, COLUMNS)
    begin = tl.program_id(1) * span
    sums = add_products_of_tokens(
        tl.zeros([ROWS, COLUMNS], tl.float32),
        x + element[:, None],
        x_stride,
        row_inside[:, None],
        grad + output[None, :],
        grad_stride,
        column_inside[None, :],
        begin,
        tl.minimum(begin + span, tokens),
        STEP,
        PRECISION,
    )
    at = grad_w + tl.program_id(1) * plane.to(tl.int64) + output.to(tl.int64)[None, :] * inputs + element[:, None]
    tl.store(at, sums.to(grad_w.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])


@kernel(varying=["tokens"])
def activation_gradient_kernel(
    grad_y,
    grad_y_stride,
    pre_activation,
    grad,
    tokens,
    width,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of the pre-activations from that of y, `width` columns. Floor: 3 e bytes an element."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = token.to(tl.int64)[:, None]
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    g = tl.load(grad_y + row * grad_y_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "glu":
        at = row * (2 * width) + column[None, :]
        value = tl.load(pre_activation + at, mask=inside, other=0.0).to(tl.float32)
        gate = tl.sigmoid(tl.load(pre_activation + at + width, mask=inside, other=0.0).to(tl.float32))
        tl.store(grad + at, (g * gate).to(grad.dtype.element_ty), mask=inside)
        tl.store(grad + at + width, (g * value * gate * (1 - gate)).to(grad.dtype.element_ty), mask=inside)
    else:
        at = row * width + column[None, :]
        h = tl.load(pre_activation + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad + at, (g * slope(h, ACTIVATION)).to(grad.dtype.element_ty), mask=inside)


@kernel(varying=["tokens"])
def glu_kernel(pre_activation, y, tokens, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y = values * sigmoid(gates), behind a mask, which may differ between the two. Floor: 3 e bytes a result."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = token.to(tl.int64)[:, None]
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    at = pre_activation + row * (2 * width) + column[None, :]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + column[None, :], (value * tl.sigmoid(gate)).to(y.dtype.element_ty), mask=inside)
