"""The Triton kernels of component_ffn: two products forward, and four backward, over the units of the live list.

Floor, with T tokens, n live hidden units, width d = d_out and e bytes an element, at the peaks of the chip:

    forward   4 T n d flops;  x, y: 2 T d e bytes; hidden layer written and read: 2 T n e; kept: T n e more
    backward  8 T n d flops;  kept read, hidden layer and its gradient written and read: 5 T n e; x, y: 4 T d e

In bfloat16 an H100 multiplies 295 flops per byte of memory. Forward that is met at d = 220 without a backward pass to
come and at d = 330 with one, so that at widths of 256 and up the hidden layer in memory costs no more than the products
hide. One kernel that kept it on chip would need sums of ROWS x d in registers: 64 rows at d = 512. It would read both
weights from L2 once per 64 tokens, 64 flops a byte, where two products of 128 x 128 tiles need one byte per 128 flops;
and few tokens could not fill the chip without atomics or a second pass.

Programs whose units are all fillers return at once; the other products end where the live units end. Nothing behind
that place in the hidden layer is written or read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmao_kernels.ops._triton.activation import activate, slope
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.philox import keep_bits, load_seed
from dmao_kernels.ops._triton.products import add_products, add_products_of_tokens, elements, halves

_LIST_TILE = tl.constexpr(256)


@triton.jit
def _live_units(positions, live, components, WIDTH: tl.constexpr):
    """How many hidden units live: what fills the list up stands at its end."""
    units = positions
    if live is not None:
        count = 0
        listed = positions // WIDTH
        for first in range(0, listed, _LIST_TILE):
            entry = first + tl.arange(0, _LIST_TILE)
            component = tl.load(live + entry, mask=entry < listed, other=components)
            count += tl.sum((component < components).to(tl.int32))
        units = count * WIDTH
    return units


@kernel(varying=["tokens", "threshold"])
def dropout_bits_kernel(seed, bits, tokens, width, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The dropout mask as `keep_bits` packs it: int8 [tokens, width], width = 16 ceil(F / 128).

    Floor: about 80 instructions a byte, for eight units. Within the products they would cost as much per unit, as
    units that share a call need not live together, and half of the registers.
    """
    seed_low, seed_high = load_seed(seed)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    kept = keep_bits(seed_low, seed_high, token[:, None], word[None, :], threshold)
    at = token.to(tl.int64)[:, None] * width + word[None, :]
    tl.store(bits + at, kept.to(tl.int8), mask=(token < tokens)[:, None] & (word < width)[None, :])


@triton.jit
def _kept(bits, bits_width, row, unit, inside, VECTOR: tl.constexpr):
    """Which hidden units of a tile dropout keeps: bool [ROWS, COLUMNS]."""
    at = unit // 128 * 16 + unit % 16
    if VECTOR > 1:
        at = tl.max_contiguous(tl.multiple_of(at, VECTOR), VECTOR)
    byte = tl.load(bits + row * bits_width + at[None, :], mask=inside, other=0)
    return (byte.to(tl.int32) >> (unit // 16 % 8)[None, :]) & 1 != 0


@triton.jit
def _finish_hidden(
    sums,
    first,
    b1,
    live,
    bits,
    bits_width,
    pre_activation,
    hidden,
    row,
    row_inside,
    positions,
    live_units,
    components,
    scale,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Bias, activation and dropout of sums for the positions from `first` on."""
    position = first + tl.arange(0, sums.shape[1])
    column_inside = position < live_units
    unit = elements(live, position, column_inside, components, WIDTH, VECTOR)
    if b1 is not None:
        sums += tl.load(b1 + unit, mask=column_inside, other=0.0).to(tl.float32)[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    at = row * positions + position[None, :]
    if pre_activation is not None:
        tl.store(pre_activation + at, sums.to(pre_activation.dtype.element_ty), mask=inside)
    value = activate(sums, ACTIVATION)
    if bits is not None:
        value = tl.where(_kept(bits, bits_width, row, unit, inside, VECTOR), value * scale, 0.0)
    tl.store(hidden + at, value.to(hidden.dtype.element_ty), mask=inside)


@kernel(varying=["tokens", "components"])
def hidden_kernel(
    x,
    x_stride,
    w1,
    w1_stride,
    b1,
    live,
    bits,
    bits_width,
    pre_activation,
    hidden,
    tokens,
    width,
    positions,
    components,
    scale,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """hidden = dropout(act(x w1^T + b1)), a tile of it; pre_activation, if not None, keeps the sums."""
    column_tiles = tl.cdiv(positions, COLUMNS)
    live_units = _live_units(positions, live, components, WIDTH)
    first = tl.program_id(0) % column_tiles * COLUMNS
    if first >= live_units:
        return
    token = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    position = first + tl.arange(0, COLUMNS)
    row_inside, column_inside = token < tokens, position < live_units
    unit = elements(live, position, column_inside, components, WIDTH, VECTOR)
    row = token.to(tl.int64)[:, None]
    sums = add_products(
        tl.zeros([ROWS, COLUMNS], tl.float32),
        x + row * x_stride,
        row_inside[:, None],
        w1 + unit[None, :] * w1_stride,
        1,
        column_inside[None, :],
        width,
        None,
        0,
        None,
        1,
        1,
        False,
        STEP,
        PRECISION,
    )
    left, right = halves(sums)
    half: tl.constexpr = COLUMNS // 2
    memory = (b1, live, bits, bits_width, pre_activation, hidden)
    place = (row, row_inside, positions, live_units, components)
    _finish_hidden(left, first, *memory, *place, scale, WIDTH, VECTOR, ACTIVATION)
    _finish_hidden(right, first + half, *memory, *place, scale, WIDTH, VECTOR, ACTIVATION)


@kernel(varying=["tokens", "components"])
def outward_kernel(
    hidden,
    w,
    w_output_stride,
    w_unit_stride,
    bias,
    live,
    y,
    tokens,
    width,
    positions,
    components,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """y = hidden w + bias for a tile of tokens and outputs: of w2 forward, of w1 for the gradient of x."""
    column_tiles = tl.cdiv(width, COLUMNS)
    token = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, column_inside = token < tokens, output < width
    row = token.to(tl.int64)[:, None]
    sums = add_products(
        tl.zeros([ROWS, COLUMNS], tl.float32),
        hidden + row * positions,
        row_inside[:, None],
        w + output[None, :] * w_output_stride,
        w_unit_stride,
        column_inside[None, :],
        _live_units(positions, live, components, WIDTH),
        live,
        components,
        None,
        WIDTH,
        VECTOR,
        False,
        STEP,
        PRECISION,
    )
    if bias is not None:
        sums += tl.load(bias + output, mask=column_inside, other=0.0).to(tl.float32)[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    tl.store(y + row * width + output[None, :], sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _finish_hidden_gradient(
    sums,
    first,
    live,
    bits,
    bits_width,
    pre_activation,
    grad,
    grad_sums,
    hidden,
    row,
    row_tile,
    row_inside,
    positions,
    live_units,
    components,
    scale,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """What sums, the gradients of the hidden layer for the positions from `first` on, become before it."""
    position = first + tl.arange(0, sums.shape[1])
    column_inside = position < live_units
    inside = row_inside[:, None] & column_inside[None, :]
    at = row * positions + position[None, :]
    h = tl.load(pre_activation + at, mask=inside, other=0.0).to(tl.float32)
    factor = scale
    if bits is not None:
        unit = elements(live, position, column_inside, components, WIDTH, VECTOR)
        factor = tl.where(_kept(bits, bits_width, row, unit, inside, VECTOR), scale, 0.0)
    if hidden is not None:
        tl.store(hidden + at, (activate(h, ACTIVATION) * factor).to(hidden.dtype.element_ty), mask=inside)
    if grad is not None or grad_sums is not None:
        sums *= slope(h, ACTIVATION) * factor
    if grad is not None:
        tl.store(grad + at, sums.to(grad.dtype.element_ty), mask=inside)
    if grad_sums is not None:
        tl.store(grad_sums + row_tile.to(tl.int64) * positions + position, tl.sum(sums, 0), mask=column_inside)


@kernel(varying=["tokens", "components"])
def hidden_gradient_kernel(
    grad_y,
    grad_y_stride,
    w2,
    w2_stride,
    pre_activation,
    live,
    bits,
    bits_width,
    grad,
    grad_sums,
    hidden,
    tokens,
    width,
    positions,
    components,
    scale,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """The gradient of the pre-activations, its sums over a tile of tokens, and the hidden layer once more.

    grad, grad_sums (float32 [tiles of tokens, units]) and hidden may be None: nobody needs them.
    """
    column_tiles = tl.cdiv(positions, COLUMNS)
    live_units = _live_units(positions, live, components, WIDTH)
    first = tl.program_id(0) % column_tiles * COLUMNS
    if first >= live_units:
        return
    row_tile = tl.program_id(0) // column_tiles
    token = row_tile * ROWS + tl.arange(0, ROWS)
    position = first + tl.arange(0, COLUMNS)
    row_inside, column_inside = token < tokens, position < live_units
    unit = elements(live, position, column_inside, components, WIDTH, VECTOR)
    row = token.to(tl.int64)[:, None]
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    if grad is not None or grad_sums is not None:
        sums = add_products(
            sums,
            grad_y + row * grad_y_stride,
            row_inside[:, None],
            w2 + unit[None, :],
            w2_stride,
            column_inside[None, :],
            width,
            None,
            0,
            None,
            1,
            1,
            False,
            STEP,
            PRECISION,
        )
    left, right = halves(sums)
    half: tl.constexpr = COLUMNS // 2
    memory = (live, bits, bits_width, pre_activation, grad, grad_sums, hidden)
    place = (row, row_tile, row_inside, positions, live_units, components)
    _finish_hidden_gradient(left, first, *memory, *place, scale, WIDTH, VECTOR, ACTIVATION)
    _finish_hidden_gradient(right, first + half, *memory, *place, scale, WIDTH, VECTOR, ACTIVATION)


@kernel(varying=["plane", "tokens", "span", "components"])
def weight_gradient_kernel(
    left,
    left_stride,
    right,
    right_stride,
    live,
    grad,
    grad_stride,
    plane,
    tokens,
    span,
    width,
    positions,
    components,
    UNITS_ARE_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """left^T right over a span of tokens, at the stored places of the units; a plane of grad per span.

    One side has `width` columns, the other the hidden units by position: those of left with UNITS_ARE_ROWS (w1, from
    the gradient of the pre-activations and x), else those of right (w2, from the gradient of y and the hidden layer).
    """
    live_units = _live_units(positions, live, components, WIDTH)
    if UNITS_ARE_ROWS:
        rows = live_units
        columns = width
        column_tiles = tl.cdiv(width, COLUMNS)
    else:
        rows = width
        columns = live_units
        column_tiles = tl.cdiv(positions, COLUMNS)
    first_row = tl.program_id(0) // column_tiles * ROWS
    first_column = tl.program_id(0) % column_tiles * COLUMNS
    if (first_row >= rows) | (first_column >= columns):
        return
    m = first_row + tl.arange(0, ROWS)
    n = first_column + tl.arange(0, COLUMNS)
    row_inside, column_inside = m < rows, n < columns
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, tokens)
    sums = add_products_of_tokens(
        tl.zeros([ROWS, COLUMNS], tl.float32),
        left + m[:, None],
        left_stride,
        row_inside[:, None],
        right + n[None, :],
        right_stride,
        column_inside[None, :],
        begin,
        end,
        STEP,
        PRECISION,
    )
    if UNITS_ARE_ROWS:
        m = elements(live, m, row_inside, components, WIDTH, 1)
    else:
        n = elements(live, n, column_inside, components, WIDTH, VECTOR)
    at = tl.program_id(1) * plane.to(tl.int64) + m.to(tl.int64)[:, None] * grad_stride + n[None, :]
    tl.store(grad + at, sums.to(grad.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])
