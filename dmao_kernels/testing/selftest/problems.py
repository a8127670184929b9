"""Every operation that has gradients, as problems that plain PyTorch can solve as well, in any dtype: small and odd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

import dmao_kernels
from dmao_kernels.block_mask import BlockMask
from dmao_kernels.ops.block_attention.reference import block_attention_reference
from dmao_kernels.ops.component_conv.reference import component_conv_reference
from dmao_kernels.ops.component_ffn.reference import component_ffn_reference
from dmao_kernels.ops.conv3x3.reference import conv3x3_reference
from dmao_kernels.ops.depthwise_conv1d.reference import depthwise_conv1d_reference
from dmao_kernels.ops.dropout_add.reference import dropout_add_layer_norm_reference, dropout_add_reference
from dmao_kernels.ops.masked_linear.reference import masked_linear_reference
from dmao_kernels.ops.packing.reference import unpack_reference

Function = Callable[..., Any]


@dataclass(frozen=True)
class Problem:
    """A call: tensors that have gradients, by name, and what else it needs.

    reference: the same in plain PyTorch, in any dtype.
    """

    op: str
    name: str
    function: Function
    reference: Function
    tensors: dict[str, Tensor]
    options: dict[str, Any]


def first_line(error: Exception) -> str:
    """What went wrong, short enough for a table."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300].replace("|", "/")


class Draw:
    """Random tensors, the same on all devices."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).to(self.device, self.dtype)

    def ids(self, *values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def seed(self) -> Tensor:
        return torch.tensor([0x1234_5678_9ABC_DEF], device=self.device)

    def blocks(self, rows: int, columns: int, block: int) -> BlockMask:
        """About half of the blocks live, all of the first row."""
        grid = torch.rand(rows, columns, generator=self._generator) < 0.5
        grid[0] = True
        return BlockMask.from_dense(grid.to(self.device), block)


def problems(device: str, dtype: torch.dtype, large: bool) -> Iterator[Problem]:
    """All of them; each is made when it is its turn. large: also some of the size of those that are timed."""
    for make in (_ffn, _linear, _attention, _convolution, _residual, _front, *([_large] if large else [])):
        yield from make(Draw(device, dtype))


def _ffn(draw: Draw) -> Iterator[Problem]:
    weights = {
        "w1": draw(96, 40, scale=0.15),
        "b1": draw(96),
        "w2": draw(24, 96, scale=0.1),
        "b2": draw(24),
    }
    for name, rows, options in (
        ("all live", 65, {}),
        ("dropout, 3 of 4 live", 33, {"live": draw.ids(0, 1, 3), "p": 0.1, "seed": draw.seed()}),
        ("relu, no row", 0, {"activation": "relu"}),
    ):
        tensors = {"x": draw(rows, 40), **weights}
        options = {"components": 4, **options}
        yield Problem("component_ffn", name, dmao_kernels.component_ffn, component_ffn_reference, tensors, options)


def _linear(draw: Draw) -> Iterator[Problem]:
    for name, options in (
        ("all live", {}),
        ("blocks of 16, silu", {"mask": draw.blocks(6, 5, 16), "activation": "silu"}),
        ("blocks of 32, glu", {"mask": draw.blocks(3, 3, 32), "activation": "glu"}),
    ):
        tensors = {"x": draw(70, 72), "w": draw(88, 72, scale=0.12), "b": draw(88)}
        yield Problem("masked_linear", name, dmao_kernels.masked_linear, masked_linear_reference, tensors, options)


def _attention(draw: Draw) -> Iterator[Problem]:
    rows, packed = (3, 70, 2, 32), (90, 2, 32)
    positions = {"rel_pos": draw(141, 2, 32), "content_bias": draw(2, 32), "position_bias": draw(2, 32)}
    for name, shape, more, options in (
        ("full", rows, {}, {}),
        ("lengths 70, 1, 0, one head dead", rows, {}, {"lengths": draw.ids(70, 1, 0), "head_mask": _one(draw)}),
        (
            "relative positions, dropout",
            rows,
            positions,
            {"p": 0.1, "seed": draw.seed(), "lengths": draw.ids(70, 33, 9)},
        ),
        ("packed, window", packed, {}, {"offsets": draw.ids(0, 50, 50, 90), "window": (9, 3)}),
        ("blocks", rows, {}, {"block_mask": draw.blocks(5, 5, 16)}),
    ):
        tensors = {**{name: draw(*shape) for name in "qkv"}, **more}
        yield Problem(
            "block_attention", name, dmao_kernels.block_attention, block_attention_reference, tensors, options
        )


def _one(draw: Draw) -> Tensor:
    return torch.tensor([True, False], device=draw.device)


def _convolution(draw: Draw) -> Iterator[Problem]:
    vectors = {"bias": draw(48), "norm_weight": draw(48), "norm_bias": draw(48)}
    for name, shape, options in (
        ("lengths 40, 1, 0", (3, 40, 96), {"lengths": draw.ids(40, 1, 0)}),
        ("packed, 2 of 4 live", (60, 96), {"offsets": draw.ids(0, 41, 60), "live": draw.ids(1, 3), "components": 4}),
    ):
        tensors = {"x": draw(*shape), "weight": draw(48, 7, scale=0.4), **vectors}
        yield Problem("component_conv", name, dmao_kernels.component_conv, component_conv_reference, tensors, options)
    tensors = {"x": draw(3, 40, 48), "weight": draw(48, 7, scale=0.4), "bias": draw(48)}
    options = {"lengths": draw.ids(40, 11, 0)}
    yield Problem(
        "depthwise_conv1d", "lengths", dmao_kernels.depthwise_conv1d, depthwise_conv1d_reference, tensors, options
    )


def _residual(draw: Draw) -> Iterator[Problem]:
    tensors = {"x": draw(7, 9, 100), "y": draw(7, 9, 100)}
    options = {"p": 0.1, "seed": draw.seed(), "scale": 0.5}
    yield Problem("dropout_add", "dropout", dmao_kernels.dropout_add, dropout_add_reference, tensors, options)
    yield Problem(
        "dropout_add_layer_norm",
        "dropout",
        _stacked(dmao_kernels.dropout_add_layer_norm),
        _stacked(dropout_add_layer_norm_reference),
        {**tensors, "weight": draw(100), "bias": draw(100)},
        options,
    )


def _stacked(function: Function) -> Function:
    return lambda **arguments: torch.stack(function(**arguments))


def _front(draw: Draw) -> Iterator[Problem]:
    lengths = draw.ids(9, 0, 4)
    yield Problem(
        "pack", "", lambda **both: dmao_kernels.pack(**both)[0], _pack, {"x": draw(3, 9, 20)}, {"lengths": lengths}
    )
    options = {"offsets": draw.ids(0, 9, 9, 13), "frames": 9}
    yield Problem("unpack", "", dmao_kernels.unpack, unpack_reference, {"packed": draw(13, 20)}, options)
    if draw.dtype == torch.float16:
        return  # conv3x3 has no kernel for GPUs, and does not take it
    tensors = {"x": draw(2, 9, 11, 4), "weight": draw(8, 4, 3, 3, scale=0.2), "bias": draw(8)}
    options = {"pooling": (2, 2)}
    yield Problem("conv3x3", "pooling", dmao_kernels.conv3x3, conv3x3_reference, tensors, options)


def _pack(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(x, lengths.tolist(), strict=True)])


def _large(draw: Draw) -> Iterator[Problem]:
    d, hidden, seed = 512, 2048, draw.seed()
    tensors = {"x": draw(3000, d), "w1": draw(hidden, d, scale=d**-0.5), "b1": draw(hidden)}
    tensors |= {"w2": draw(d, hidden, scale=hidden**-0.5), "b2": draw(d)}
    options = {"live": draw.ids(0, 1, 2, 4, 5, 7), "components": 8, "p": 0.1, "seed": seed}
    yield Problem("component_ffn", "large", dmao_kernels.component_ffn, component_ffn_reference, tensors, options)
    tensors = {"x": draw(3000, d), "w": draw(2 * d, d, scale=d**-0.5), "b": draw(2 * d)}
    options = {"mask": draw.blocks(16, 8, 64)}
    yield Problem("masked_linear", "large", dmao_kernels.masked_linear, masked_linear_reference, tensors, options)
    tensors = {name: draw(4, 500, 8, 64) for name in "qkv"}
    tensors |= {"rel_pos": draw(999, 8, 64), "content_bias": draw(8, 64), "position_bias": draw(8, 64)}
    options = {"lengths": draw.ids(500, 437, 1, 128), "p": 0.1, "seed": seed}
    yield Problem("block_attention", "large", dmao_kernels.block_attention, block_attention_reference, tensors, options)
    tensors = {"x": draw(4, 500, 2 * d), "weight": draw(d, 31, scale=0.2), "bias": draw(d)}
    tensors |= {"norm_weight": draw(d), "norm_bias": draw(d)}
    options = {"lengths": draw.ids(500, 437, 1, 128)}
    yield Problem("component_conv", "large", dmao_kernels.component_conv, component_conv_reference, tensors, options)
    tensors = {"x": draw(4000, d), "y": draw(4000, d), "weight": draw(d), "bias": draw(d)}
    function, reference = _stacked(dmao_kernels.dropout_add_layer_norm), _stacked(dropout_add_layer_norm_reference)
    yield Problem("dropout_add_layer_norm", "large", function, reference, tensors, {"p": 0.1, "seed": seed})
