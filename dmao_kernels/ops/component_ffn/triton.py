"""component_ffn on GPUs: allocation and grids of the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmao_kernels.ops._triton.config import Config, cdiv, choose, choose_tiles, kind_of, precision, processors
from dmao_kernels.ops._triton.live import Channels
from dmao_kernels.ops._triton.philox import threshold_of
from dmao_kernels.ops._triton.products import (
    TILES,
    gathering,
    rows_of,
    sum_planes,
    token_spans,
    vector_of,
    weight_rows,
)
from dmao_kernels.ops._triton.sums import add_parts
from dmao_kernels.ops.component_ffn import _kernels as kernels

_BITS = {"ROWS": 16, "COLUMNS": 64}


class _Layer:
    """What the launches of one call share."""

    def __init__(
        self, x: Tensor, w1: Tensor, w2: Tensor, live: Tensor | None, components: int, p: float, seed: Tensor | None
    ) -> None:
        self.x = rows_of(x)
        self.w1, self.w2 = weight_rows("component_ffn", "w1", w1), weight_rows("component_ffn", "w2", w2)
        self.tokens, self.d = self.x.shape
        self.d_out, self.units = w2.shape
        unit = self.units // components if components else 0
        self.positions = self.units if live is None else live.shape[0] * unit
        # The width is a constant of the kernels only with a list: without one it may be what an edit changes.
        width = unit if live is not None and unit else 1
        vector = 16 if live is None else vector_of(width)
        self.list: dict[str, Any] = {
            "live": None if live is None else live.contiguous(),
            "positions": self.positions,
            "components": components,
            "WIDTH": width,
            "VECTOR": vector,
        }
        self.key = self.d, self.d_out, width
        self.drop = self._dropout(p, seed)

    def _dropout(self, p: float, seed: Tensor | None) -> dict[str, Any]:
        """The mask of dropout, as bits, and the factor for what it keeps."""
        if p == 0 or not self.tokens * self.units:
            return {"bits": None, "bits_width": 0, "scale": 1.0}
        width = 16 * cdiv(self.units, 128)
        bits = torch.empty(self.tokens, width, dtype=torch.int8, device=self.x.device)
        grid = cdiv(self.tokens, _BITS["ROWS"]), cdiv(width, _BITS["COLUMNS"])
        kernels.dropout_bits_kernel[grid](seed, bits, self.tokens, width, threshold_of(p), **_BITS)
        return {"bits": bits, "bits_width": width, "scale": 1 / (1 - p)}

    def choose(self, product: str, rows: int, columns: int, run: Callable[[Config], None] | None = None) -> Config:
        op, end = f"component_ffn {product}", "hidden" if product == "hidden" else ""
        return choose_tiles(op, TILES, self.x.dtype, self.x.device, (rows, columns), self.key, run, end)

    def constants(self, config: Config) -> dict[str, Any]:
        return {**self.list, "PRECISION": precision(self.x.dtype), **config}

    def outward(self, hidden: Tensor, w: Tensor, strides: tuple[int, int], bias: Tensor | None, y: Tensor) -> None:
        """y = hidden w + bias, for w with these strides (from output to output, from unit to unit)."""
        width = y.shape[1]

        def launch(config: Config) -> None:
            grid = (_tiles(self.tokens, width, config),)
            own = config if self.list["live"] is None else gathering(config)
            kernels.outward_kernel[grid](
                hidden, w, *strides, bias, y=y, tokens=self.tokens, width=width, **self.constants(own)
            )

        if y.numel():
            launch(self.choose("outward", self.tokens, width, launch))

    def hidden_gradient(
        self, grad_y: Tensor, pre_activation: Tensor, activation: str, need: bool, need_bias: bool, need_hidden: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the pre-activations and of b1, and the hidden layer; empty where they are not needed."""
        config = self.choose("hidden", self.tokens, self.positions)
        row_tiles = cdiv(self.tokens, config["ROWS"])
        nothing = pre_activation.new_empty(0)
        grad = torch.empty_like(pre_activation) if need else nothing
        hidden = torch.empty_like(pre_activation) if need_hidden else nothing
        sums = nothing.new_empty((row_tiles if need_bias else 0, self.positions), dtype=torch.float32)
        if pre_activation.numel() and (need or need_bias or need_hidden):
            kernels.hidden_gradient_kernel[(_tiles(self.tokens, self.positions, config),)](
                grad_y,
                grad_y.stride(0),
                self.w2,
                self.w2.stride(0),
                pre_activation,
                grad=grad if need else None,
                grad_sums=sums if need_bias else None,
                hidden=hidden if need_hidden else None,
                tokens=self.tokens,
                width=self.d_out,
                ACTIVATION=activation,
                **self.drop,
                **self.constants(config),
            )
        grad_b1 = pre_activation.new_zeros(self.units if need_bias else 0)
        if need_bias and self.positions:
            add_parts(sums[:, None], None, grad_b1, Channels(self.units, self.list["live"], self.list["components"]))
        return grad, grad_b1, hidden

    def weight_gradient(self, left: Tensor, right: Tensor, like: Tensor, units_are_rows: bool) -> Tensor:
        """left^T right at the stored places of the units, which are its rows or its columns; zeros elsewhere."""
        make = torch.empty if self.list["live"] is None else torch.zeros
        rows, columns = like.shape
        listed = (self.positions, columns) if units_are_rows else (rows, self.positions)
        grad = make(like.shape, dtype=like.dtype, device=like.device)

        def launch(config: Config) -> None:
            tiles = _tiles(*listed, config)
            spans, span = token_spans(self.tokens, tiles, 2 * processors(like.device), config["STEP"])
            planes = grad if spans == 1 else make(spans, rows, columns, dtype=torch.float32, device=like.device)
            kernels.weight_gradient_kernel[(tiles, spans)](
                left,
                left.stride(0),
                right,
                right.stride(0),
                grad=planes,
                grad_stride=columns,
                plane=rows * columns,
                tokens=self.tokens,
                span=span,
                width=columns if units_are_rows else rows,
                UNITS_ARE_ROWS=units_are_rows,
                **self.constants(config),
            )
            if spans > 1:
                sum_planes(planes, grad)

        if listed[0] * listed[1]:
            kind = f"{kind_of(like.dtype)} weights"
            launch(choose("component_ffn weights", TILES, kind, like.device, self.key, launch))
        return grad


def _tiles(rows: int, columns: int, config: Config) -> int:
    return cdiv(rows, config["ROWS"]) * cdiv(columns, config["COLUMNS"])


def component_ffn(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    live: Tensor | None,
    components: int,
    p: float,
    seed: Tensor | None,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The operator dmao_triton::component_ffn."""
    layer = _Layer(x, w1, w2, live, components, p, seed)
    y = x.new_empty((*x.shape[:-1], layer.d_out))
    kept = x.new_empty((layer.tokens if keep else 0, layer.positions))
    hidden = x.new_empty((layer.tokens, layer.positions))

    def launch(config: Config) -> None:
        kernels.hidden_kernel[(_tiles(layer.tokens, layer.positions, config),)](
            layer.x,
            layer.x.stride(0),
            layer.w1,
            layer.w1.stride(0),
            None if b1 is None else b1.contiguous(),
            pre_activation=kept if keep else None,
            hidden=hidden,
            tokens=layer.tokens,
            width=layer.d,
            ACTIVATION=activation,
            **layer.drop,
            **layer.constants(config),
        )

    if hidden.numel():
        launch(layer.choose("hidden", layer.tokens, layer.positions, launch))
    bias = None if b2 is None else b2.contiguous()
    layer.outward(hidden, layer.w2, (layer.w2.stride(0), 1), bias, y.view(layer.tokens, layer.d_out))
    return y, kept


def component_ffn_backward(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    live: Tensor | None,
    pre_activation: Tensor,
    components: int,
    p: float,
    seed: Tensor | None,
    activation: str,
    need_x: bool,
    need_w1: bool,
    need_b1: bool,
    need_w2: bool,
    need_b2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator dmao_triton::component_ffn_backward."""
    layer = _Layer(x, w1, w2, live, components, p, seed)
    nothing = x.new_empty(0)
    grad_y = rows_of(grad_y)
    grad, grad_b1, hidden = layer.hidden_gradient(
        grad_y, pre_activation, activation, need_x or need_w1, need_b1, need_w2
    )
    grad_x = x.new_empty(x.shape if need_x else (0,))
    if need_x:
        layer.outward(grad, layer.w1, (1, layer.w1.stride(0)), None, grad_x.view(layer.x.shape))
    return (
        grad_x,
        layer.weight_gradient(grad, layer.x, w1, True) if need_w1 else nothing,
        grad_b1,
        layer.weight_gradient(grad_y, hidden, w2, False) if need_w2 else nothing,
        grad_y.sum(0) if need_b2 else nothing,
    )
