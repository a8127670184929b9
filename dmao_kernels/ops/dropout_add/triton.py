"""dropout_add, dropout_add_layer_norm and its gradients as Triton kernels.

Floor: memory. Each of these arrays of rows once: x, y -> sum, norm; grad_sum, grad_norm, sum -> grad_x, grad_y.
A mask costs about 20 instructions an element, which an H100 issues in less than half of the time that the six bytes of
an element in bfloat16 take.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.config import cdiv
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.philox import keep_tile, load_seed, threshold_of
from dmao_kernels.ops._triton.rows import NORM_BACKWARD_TILE, NORM_TILE, columns_of, row_parts, row_tile
from dmao_kernels.ops._triton.sums import add_parts

_TILE = 4096  # elements of a tile: with 4 warps 32 a thread, which fill loads of 16 bytes from two arrays


def dropout_add(x: Tensor | None, y: Tensor, p: float, seed: Tensor | None, scale: float) -> Tensor:
    """x + scale * dropout(y)."""
    out = torch.empty_like(y if x is None else x, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    width = y.shape[-1]
    rows = y.numel() // width
    columns = min(columns_of(width), 128)
    tile_rows = _TILE // columns
    grid = (cdiv(rows, tile_rows) * cdiv(width, columns),)
    _dropout_add[grid](
        None if x is None else x.contiguous(),
        y.contiguous(),
        out,
        *_mask(p, seed, scale),
        rows,
        width,
        ROWS=tile_rows,
        COLUMNS=columns,
        DROP=p > 0,
    )
    return out


def dropout_add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, p: float, seed: Tensor | None, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, its LayerNorm, and mean and reciprocal standard deviation of every row."""
    total, norm = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    statistics = weight.new_empty((math.prod(x.shape[:-1]), 2))
    if total.numel() == 0:
        return total, norm, statistics
    rows, width = statistics.shape[0], x.shape[-1]
    tile_rows, columns, warps = row_tile(width, NORM_TILE, x.device)
    _layer_norm[(cdiv(rows, tile_rows),)](
        x.contiguous(),
        y.contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        total,
        norm,
        statistics,
        *_mask(p, seed, scale),
        eps,
        rows,
        width,
        ROWS=tile_rows,
        COLUMNS=columns,
        DROP=p > 0,
        num_warps=warps,
    )
    return total, norm, statistics


def dropout_add_layer_norm_backward(
    grad_sum: Tensor | None,
    grad_norm: Tensor,
    sum: Tensor,
    weight: Tensor,
    statistics: Tensor,
    p: float,
    seed: Tensor | None,
    scale: float,
    need_y: bool,
    y_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, y (empty unless needed), weight and bias."""
    grad_x = torch.empty_like(sum, memory_format=torch.contiguous_format)
    grad_y = sum.new_empty(sum.shape if need_y else (0,), dtype=y_dtype)
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
    if sum.numel() == 0:
        return grad_x, grad_y, grad_weight, grad_bias
    rows, width = statistics.shape[0], sum.shape[-1]
    tile_rows, columns, warps = row_tile(width, NORM_BACKWARD_TILE, sum.device)
    parts, part_tiles = row_parts(rows, tile_rows)
    partial = torch.empty((parts, 2, width), dtype=torch.float32, device=sum.device)
    _layer_norm_backward[(parts,)](
        None if grad_sum is None else grad_sum.contiguous(),
        grad_norm.contiguous(),
        sum.contiguous(),
        weight.contiguous(),
        statistics.contiguous(),
        grad_x,
        grad_y if need_y else None,
        partial,
        *_mask(p, seed, scale),
        rows,
        width,
        part_tiles,
        ROWS=tile_rows,
        COLUMNS=columns,
        DROP=p > 0,
        num_warps=warps,
    )
    add_parts(partial, grad_weight, grad_bias)
    return grad_x, grad_y, grad_weight, grad_bias


def _mask(p: float, seed: Tensor | None, scale: float) -> tuple[Tensor | None, int, float]:
    """Seed, threshold and factor of what is kept."""
    return (seed if p > 0 else None), threshold_of(p), scale / (1 - p)


@triton.jit
def _factor(seed_ptr, threshold, scale, rows, first_column, COLUMNS: tl.constexpr, DROP: tl.constexpr):
    """What multiplies y: the scale, and 0 where dropout strikes."""
    factor = scale
    if DROP:
        seed_low, seed_high = load_seed(seed_ptr)
        kept = keep_tile(seed_low, seed_high, rows, first_column, COLUMNS, threshold)
        factor = tl.where(kept, scale, 0.0)
    return factor


@kernel(varying=["threshold"])
def _dropout_add(
    x_ptr,
    y_ptr,
    out_ptr,
    seed_ptr,
    threshold,
    scale,
    row_count,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DROP: tl.constexpr,
):
    column_tiles = tl.cdiv(width, COLUMNS)
    first_column = tl.program_id(0) % column_tiles * COLUMNS
    rows = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < row_count) & (columns[None, :] < width)
    place = rows[:, None].to(tl.int64) * width + columns[None, :]
    out = tl.load(y_ptr + place, inside, 0.0).to(tl.float32)
    if x_ptr is None:
        out *= _factor(seed_ptr, threshold, scale, rows, first_column, COLUMNS, DROP)
    else:
        x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
        out = x + out * _factor(seed_ptr, threshold, scale, rows, first_column, COLUMNS, DROP)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), inside)


@kernel(varying=["threshold"])
def _layer_norm(
    x_ptr,
    y_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    norm_ptr,
    statistics_ptr,
    seed_ptr,
    threshold,
    scale,
    eps,
    row_count,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DROP: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows[:, None] < row_count) & (columns[None, :] < width)
    place = rows[:, None].to(tl.int64) * width + columns[None, :]
    x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
    y = tl.load(y_ptr + place, inside, 0.0).to(tl.float32)
    total = x + y * _factor(seed_ptr, threshold, scale, rows, 0, COLUMNS, DROP)
    stored = total.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + place, stored, inside)
    # The norm is that of the rounded sum, which the backward pass reads.
    total = stored.to(tl.float32)
    mean = tl.sum(total, 1) / width
    centred = tl.where(inside, total - mean[:, None], 0.0)
    deviation = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / width + eps)
    weight = tl.load(weight_ptr + columns, columns < width, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, columns < width, 0.0).to(tl.float32)
    norm = centred * deviation[:, None] * weight[None, :] + bias[None, :]
    tl.store(norm_ptr + place, norm.to(norm_ptr.dtype.element_ty), inside)
    statistics = statistics_ptr + rows.to(tl.int64) * 2
    tl.store(statistics, mean, rows < row_count)
    tl.store(statistics + 1, deviation, rows < row_count)


@kernel(varying=["threshold", "part_tiles"])
def _layer_norm_backward(
    grad_sum_ptr,
    grad_norm_ptr,
    sum_ptr,
    weight_ptr,
    statistics_ptr,
    grad_x_ptr,
    grad_y_ptr,
    partial_ptr,
    seed_ptr,
    threshold,
    scale,
    row_count,
    width,
    part_tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DROP: tl.constexpr,
):
    """A program has part_tiles tiles of rows and adds them up, row by row of a tile, for weight and bias."""
    columns = tl.arange(0, COLUMNS)
    weight = tl.load(weight_ptr + columns, columns < width, 0.0).to(tl.float32)[None, :]
    for_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    for_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    first_tile = tl.program_id(0) * part_tiles
    for tile in range(first_tile, min(first_tile + part_tiles, tl.cdiv(row_count, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < row_count) & (columns[None, :] < width)
        place = rows[:, None].to(tl.int64) * width + columns[None, :]
        grad_norm = tl.load(grad_norm_ptr + place, inside, 0.0).to(tl.float32)
        total = tl.load(sum_ptr + place, inside, 0.0).to(tl.float32)
        statistics = statistics_ptr + rows.to(tl.int64) * 2
        mean = tl.load(statistics, rows < row_count, 0.0)[:, None]
        deviation = tl.load(statistics + 1, rows < row_count, 0.0)[:, None]
        standard = tl.where(inside, (total - mean) * deviation, 0.0)
        for_weight += grad_norm * standard
        for_bias += grad_norm
        by_standard = grad_norm * weight
        mean_grad = tl.sum(by_standard, 1)[:, None] / width
        mean_product = tl.sum(by_standard * standard, 1)[:, None] / width
        grad = (by_standard - mean_grad - standard * mean_product) * deviation
        if grad_sum_ptr is not None:
            grad += tl.load(grad_sum_ptr + place, inside, 0.0).to(tl.float32)
        tl.store(grad_x_ptr + place, grad.to(grad_x_ptr.dtype.element_ty), inside)
        if grad_y_ptr is not None:
            grad *= _factor(seed_ptr, threshold, scale, rows, 0, COLUMNS, DROP)
            tl.store(grad_y_ptr + place, grad.to(grad_y_ptr.dtype.element_ty), inside)
    part = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * width + columns
    tl.store(part, tl.sum(for_weight, 0), columns < width)
    tl.store(part + width, tl.sum(for_bias, 0), columns < width)
