"""Calls of the public API, forward and backward, at sizes of a Conformer of width 384.

Nothing is computed under the mock driver: neither values nor what comes back matter. Sizes decide alignment, and tiles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import dmao_kernels as dk

WIDTH, HIDDEN, COMPONENTS = 384, 1536, 4
BATCH, FRAMES, ROWS = 5, 1000, 4000  # Triton specialises on what 16 divides

Problem = Callable[[torch.dtype], None]
PROBLEMS: dict[str, Problem] = {}


def problem(function: Problem) -> Problem:
    PROBLEMS[function.__name__] = function
    return function


def leaf(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=torch.is_grad_enabled())


def seed() -> Tensor:
    return torch.tensor([1])


def live() -> Tensor:
    """Half of the components, in a list of a length that does not depend on it."""
    return torch.tensor([0, 2, COMPONENTS, COMPONENTS], dtype=torch.int32)


def lengths() -> Tensor:
    """Of the utterances, FRAMES the longest one and ROWS all of them."""
    return torch.arange(600, 1001, 100, dtype=torch.int32)


def offsets() -> Tensor:
    return F.pad(lengths().cumsum(0, dtype=torch.int32), (1, 0))


def backward(*outputs: Tensor) -> None:
    if torch.is_grad_enabled():
        torch.autograd.backward(outputs, [torch.zeros_like(output) for output in outputs])


@problem
def component_ffn(dtype: torch.dtype) -> None:
    x, w1, b1 = leaf(dtype, ROWS, WIDTH), leaf(dtype, HIDDEN, WIDTH), leaf(dtype, HIDDEN)
    w2, b2 = leaf(dtype, WIDTH, HIDDEN), leaf(dtype, WIDTH)
    backward(dk.component_ffn(x, w1, b1, w2, b2, live(), components=COMPONENTS, p=0.1, seed=seed()))


@problem
def masked_linear(dtype: torch.dtype) -> None:
    x, w, b = leaf(dtype, ROWS, WIDTH), leaf(dtype, HIDDEN, WIDTH), leaf(dtype, HIDDEN)
    mask = dk.BlockMask.from_dense(torch.rand(HIDDEN // 64, WIDTH // 64) < 0.5, 64, static=True)
    backward(dk.masked_linear(x, w, b, mask, activation="silu"))


@problem
def masked_linear_dense(dtype: torch.dtype) -> None:
    x, w, b = leaf(dtype, ROWS, WIDTH), leaf(dtype, 2 * WIDTH, WIDTH), leaf(dtype, 2 * WIDTH)
    backward(dk.masked_linear(x, w, b, activation="glu"))


def attention(dtype: torch.dtype, heads: int, width: int, relative: bool, p: float) -> None:
    q, k, v = leaf(dtype, ROWS, 3, heads, width).unbind(1)
    positions: dict[str, Tensor] = {}
    if relative:
        positions["rel_pos"] = leaf(dtype, 2 * FRAMES - 1, heads, width)
        positions["content_bias"], positions["position_bias"] = leaf(dtype, heads, width), leaf(dtype, heads, width)
    backward(dk.block_attention(q, k, v, offsets=offsets(), p=p, seed=seed(), **positions))


@problem
def block_attention_64(dtype: torch.dtype) -> None:
    attention(dtype, 6, 64, relative=False, p=0.0)


@problem
def block_attention_64_relative_dropout(dtype: torch.dtype) -> None:
    attention(dtype, 6, 64, relative=True, p=0.1)


@problem
def block_attention_96_relative_dropout(dtype: torch.dtype) -> None:
    attention(dtype, 4, 96, relative=True, p=0.1)


@problem
def block_attention_masked(dtype: torch.dtype) -> None:
    q, k, v = leaf(dtype, BATCH, 3, FRAMES, 6, 64).unbind(1)
    blocks = -(-FRAMES // 64)
    offset, ids = torch.arange(blocks + 1, dtype=torch.int32), torch.arange(blocks, dtype=torch.int32)
    mask = dk.BlockMask(64, blocks, blocks, offset, ids, offset, ids)
    heads = torch.tensor([True, False] * 3)
    backward(dk.block_attention(q, k, v, lengths=lengths(), block_mask=mask, window=(256, 64), head_mask=heads))


@problem
def component_conv(dtype: torch.dtype) -> None:
    x, weight, bias = leaf(dtype, ROWS, 2 * WIDTH), leaf(dtype, WIDTH, 31), leaf(dtype, WIDTH)
    norm = leaf(dtype, WIDTH), leaf(dtype, WIDTH)
    backward(dk.component_conv(x, weight, bias, *norm, None, live(), components=COMPONENTS, offsets=offsets()))


@problem
def depthwise_conv1d(dtype: torch.dtype) -> None:
    x, weight, bias = leaf(dtype, ROWS, WIDTH), leaf(dtype, WIDTH, 31), leaf(dtype, WIDTH)
    backward(dk.depthwise_conv1d(x, weight, bias, offsets=offsets()))


@problem
def dropout_add(dtype: torch.dtype) -> None:
    backward(dk.dropout_add(leaf(dtype, ROWS, WIDTH), leaf(dtype, ROWS, WIDTH), p=0.1, seed=seed(), scale=0.5))


@problem
def dropout_add_layer_norm(dtype: torch.dtype) -> None:
    x, y, weight, bias = leaf(dtype, ROWS, WIDTH), leaf(dtype, ROWS, WIDTH), leaf(dtype, WIDTH), leaf(dtype, WIDTH)
    backward(*dk.dropout_add_layer_norm(x, y, weight, bias, p=0.1, seed=seed(), scale=0.5))


@problem
def packing(dtype: torch.dtype) -> None:
    packed, offset = dk.pack(leaf(dtype, BATCH, FRAMES, WIDTH), lengths())
    backward(dk.unpack(packed, offset, FRAMES))


SHAPES = [(HIDDEN, WIDTH), (HIDDEN,), (WIDTH, HIDDEN), (WIDTH,)]


def segments() -> Tensor:
    """Of the two matrices: components of rows, and components of columns."""
    first = (0, 1, COMPONENTS, HIDDEN // COMPONENTS * WIDTH, 0)
    return torch.tensor([first, (2, WIDTH, COMPONENTS, HIDDEN // COMPONENTS, 0)], device="cpu")


@problem
def importance(dtype: torch.dtype) -> None:
    weights, grads = ([torch.zeros(shape, dtype=dtype) for shape in SHAPES] for _ in range(2))
    dk.importance_(torch.zeros(COMPONENTS), weights, grads, segments(), torch.ones(COMPONENTS))


@problem
def adamw_importance(dtype: torch.dtype) -> None:
    tensors = [[torch.zeros(shape, dtype=dtype) for shape in SHAPES] for _ in range(4)]
    steps = [torch.zeros(()) for _ in SHAPES]
    groups = torch.tensor([[1e-3, 0.9, 0.999, 1e-8, 0.01, 0.0]], dtype=torch.float64, device="cpu")
    group_of = torch.zeros(len(SHAPES), dtype=torch.int64, device="cpu")
    ema, counts = torch.zeros(COMPONENTS), torch.ones(COMPONENTS)
    dk.adamw_importance_(*tensors, steps, groups, group_of, ema, segments(), counts, grad_factor=torch.ones(()))


@problem
def gather_components(dtype: torch.dtype) -> None:
    shapes = ((1, HIDDEN // COMPONENTS * WIDTH), (WIDTH, HIDDEN // COMPONENTS))
    tensors = [torch.zeros(repeats, COMPONENTS, run, dtype=dtype) for repeats, run in shapes]
    given = [torch.zeros(repeats, 1, run, dtype=dtype) for repeats, run in shapes]
    index = torch.tensor([[0, -1], [2, 0], [-1, 0], [-1, -1]], device="cpu")
    dk.gather_components(tensors, [index, index], given)
