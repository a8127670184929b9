"""masked_linear on GPUs: allocation and grids of the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmao_kernels.ops._triton.config import (
    Config,
    cdiv,
    choose,
    choose_tiles,
    kind_of,
    power_of_2,
    precision,
    processors,
)
from dmao_kernels.ops._triton.products import (
    TILES,
    gathering,
    rows_of,
    sum_planes,
    token_spans,
    vector_of,
    weight_rows,
)
from dmao_kernels.ops.masked_linear import _kernels as kernels

_POINTWISE = {"ROWS": 8, "COLUMNS": 256}


@dataclass(frozen=True)
class _Lines:
    """The live blocks by rows of the grid, or by its columns; tensors None and block 0 without a mask."""

    offsets: Tensor | None
    ids: Tensor | None
    block: int

    def arguments(self, inputs: int) -> dict[str, Any]:
        return {
            "offsets": self.offsets,
            "ids": self.ids,
            "inputs": inputs,
            "capacity": 0 if self.ids is None else self.ids.shape[0],
            "blocks": cdiv(inputs, self.block) if self.block else 0,
            "BLOCK": self.block,
            "VECTOR": vector_of(self.block),
        }

    def fit(self, config: Config, outputs: int) -> tuple[Config, int]:
        """The tiles for blocks of this size, and how many lie along the outputs: a block, or parts of one."""
        if not self.block:
            return config, cdiv(outputs, config["COLUMNS"])
        columns = min(config["COLUMNS"], power_of_2(self.block))
        warps = config["num_warps"] if columns > 32 else min(config["num_warps"], 4)
        tiles = cdiv(outputs, self.block) * cdiv(self.block, columns)
        return {**config, "COLUMNS": columns, "num_warps": warps}, tiles


def _product(
    x: Tensor,
    w: Tensor,
    strides: tuple[int, int],
    bias: Tensor | None,
    lines: _Lines,
    outputs: int,
    activation: str,
    y: Tensor,
    kept: Tensor | None,
) -> None:
    """y = act(x w^T + bias), for w with these strides (from output to output, from input to input)."""
    tokens, inputs = x.shape
    if not tokens * outputs:
        return

    def launch(config: Config) -> None:
        own, tiles = lines.fit(config, outputs)
        kernels.product_kernel[(cdiv(tokens, own["ROWS"]) * tiles,)](
            x,
            x.stride(0),
            w,
            *strides,
            bias,
            pre_activation=kept,
            y=y,
            tokens=tokens,
            outputs=outputs,
            tiles=tiles,
            ACTIVATION=activation,
            PRECISION=precision(x.dtype),
            **lines.arguments(inputs),
            **(gathering(own) if lines.block else own),
        )

    key = inputs, outputs, lines.block
    launch(choose_tiles("masked_linear product", TILES, x.dtype, x.device, (tokens, outputs), key, launch))


def _weight_gradient(x: Tensor, grad: Tensor, lines: _Lines) -> Tensor:
    """grad^T x where w lives, zeros elsewhere."""
    (tokens, inputs), outputs = x.shape, grad.shape[1]
    make = torch.zeros if lines.block else torch.empty
    grad_w = make(outputs, inputs, dtype=x.dtype, device=x.device)
    if not inputs * outputs:
        return grad_w

    def launch(config: Config) -> None:
        own, tiles = lines.fit(config, outputs)
        # A row of blocks may be full: whoever finds nothing to do there returns.
        longest = cdiv(inputs, lines.block) * lines.block if lines.block else inputs
        grid = cdiv(longest, own["ROWS"]) * tiles
        spans, span = token_spans(tokens, grid, 2 * processors(x.device), own["STEP"])
        planes = grad_w if spans == 1 else make(spans, outputs, inputs, dtype=torch.float32, device=x.device)
        kernels.weight_gradient_kernel[(grid, spans)](
            x,
            x.stride(0),
            grad,
            grad.stride(0),
            grad_w=planes,
            plane=outputs * inputs,
            tokens=tokens,
            span=span,
            outputs=outputs,
            tiles=tiles,
            PRECISION=precision(x.dtype),
            **lines.arguments(inputs),
            **own,
        )
        if spans > 1:
            sum_planes(planes, grad_w)

    key = inputs, outputs, lines.block
    launch(choose("masked_linear weights", TILES, f"{kind_of(x.dtype)} weights", x.device, key, launch))
    return grad_w


def _pointwise_grid(tokens: int, width: int) -> tuple[int, int]:
    return cdiv(tokens, _POINTWISE["ROWS"]), cdiv(width, _POINTWISE["COLUMNS"])


def masked_linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    row_offsets: Tensor | None,
    column_ids: Tensor | None,
    column_offsets: Tensor | None,
    row_ids: Tensor | None,
    block: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The operator dmao_triton::masked_linear."""
    rows, w, lines = rows_of(x), weight_rows("masked_linear", "w", w), _Lines(row_offsets, column_ids, block)
    tokens, outputs = rows.shape[0], w.shape[0]
    gated = activation == "glu"
    y = x.new_empty((*x.shape[:-1], outputs // 2 if gated else outputs))
    kept = x.new_empty((tokens if keep else 0, outputs))
    bias = None if b is None else b.contiguous()
    if gated and block:
        pre_activation = kept if keep else x.new_empty((tokens, outputs))
        _product(rows, w, (w.stride(0), 1), bias, lines, outputs, "none", pre_activation, None)
        if y.numel():
            grid = _pointwise_grid(tokens, outputs // 2)
            kernels.glu_kernel[grid](pre_activation, y, tokens, outputs // 2, **_POINTWISE)
    else:
        _product(rows, w, (w.stride(0), 1), bias, lines, outputs, activation, y, kept if keep else None)
    return y, kept


def masked_linear_backward(
    grad_y: Tensor,
    x: Tensor,
    w: Tensor,
    row_offsets: Tensor | None,
    column_ids: Tensor | None,
    column_offsets: Tensor | None,
    row_ids: Tensor | None,
    block: int,
    pre_activation: Tensor,
    activation: str,
    need_x: bool,
    need_w: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator dmao_triton::masked_linear_backward."""
    rows, w, grad = rows_of(x), weight_rows("masked_linear", "w", w), rows_of(grad_y)
    if activation != "none":
        grad_y, grad = grad, torch.empty_like(pre_activation)
        if grad_y.numel():
            kernels.activation_gradient_kernel[_pointwise_grid(*grad_y.shape)](
                grad_y, grad_y.stride(0), pre_activation, grad, *grad_y.shape, ACTIVATION=activation, **_POINTWISE
            )
    nothing = x.new_empty(0)
    grad_x = x.new_empty(x.shape if need_x else (0,))
    if need_x:
        lines = _Lines(column_offsets, row_ids, block)
        _product(grad, w, (1, w.stride(0)), None, lines, w.shape[1], "none", grad_x.view(rows.shape), None)
    return (
        grad_x,
        _weight_gradient(rows, grad, _Lines(row_offsets, column_ids, block)) if need_w else nothing,
        grad.sum(0) if need_b else nothing,
    )
