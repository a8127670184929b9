"""The Triton kernels that sum up over tokens in the backward pass of component_ffn; floors stand in `_kernels.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from dmao_kernels.ops._triton.products import add_products_of_tokens, elements
from dmao_kernels.ops.component_ffn._kernels import _live_units


@triton.jit(do_not_specialize=["plane", "tokens", "span", "components"])
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


@triton.jit(do_not_specialize=["row_tiles", "components"])
def bias_gradient_kernel(
    grad_sums,
    live,
    grad_b1,
    row_tiles,
    positions,
    components,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """grad_b1 at the live units: the sums of hidden_gradient_kernel over its tiles of tokens. 4 n bytes a tile."""
    position = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = position < _live_units(positions, live, components, WIDTH)
    sums = tl.zeros([TILE], tl.float32)
    for first in range(0, row_tiles, ROWS):
        row = first + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * positions + position[None, :]
        some = tl.load(grad_sums + at, mask=(row < row_tiles)[:, None] & inside[None, :], other=0.0)
        sums += tl.sum(some, 0)
    unit = elements(live, position, inside, components, WIDTH, VECTOR)
    tl.store(grad_b1 + unit, sums.to(grad_b1.dtype.element_ty), mask=inside)
