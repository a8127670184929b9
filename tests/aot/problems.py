"""Calls of the public API, forward and backward, at sizes of a Conformer of width 384.

Nothing is computed under the mock driver: neither values nor what comes back matter. Sizes decide alignment, and tiles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import dmao_kernels as dk

WIDTH, HIDDEN, COMPONENTS = 384, 1536, 4
LENGTHS = (1000, 900, 800, 700, 600)  # 4000 rows; Triton specialises on what 16 divides
ROWS, FRAMES = sum(LENGTHS), max(LENGTHS)

Problem = Callable[[torch.dtype], None]
PROBLEMS: dict[str, Problem] = {}


def problem(function: Problem) -> Problem:
    PROBLEMS[function.__name__] = function
    return function


def leaf(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def seed() -> Tensor:
    return torch.tensor([1])


def live() -> Tensor:
    """Half of the components, in a list of a length that does not depend on it."""
    return torch.tensor([0, 2, COMPONENTS, COMPONENTS], dtype=torch.int32)


def offsets() -> Tensor:
    return torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def backward(output: Tensor) -> None:
    output.backward(torch.zeros_like(output))


@problem
def component_ffn(dtype: torch.dtype) -> None:
    x, w1, b1 = leaf(dtype, ROWS, WIDTH), leaf(dtype, HIDDEN, WIDTH), leaf(dtype, HIDDEN)
    w2, b2 = leaf(dtype, WIDTH, HIDDEN), leaf(dtype, WIDTH)
    backward(dk.component_ffn(x, w1, b1, w2, b2, live(), components=COMPONENTS, p=0.1, seed=seed()))


@problem
def masked_linear(dtype: torch.dtype) -> None:
    x, w, b = leaf(dtype, ROWS, WIDTH), leaf(dtype, HIDDEN, WIDTH), leaf(dtype, HIDDEN)
    mask = dk.BlockMask.from_dense(torch.rand(HIDDEN // 64, WIDTH // 64) < 0.5, 64)
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
    q, k, v = leaf(dtype, len(LENGTHS), 3, FRAMES, 6, 64).unbind(1)
    blocks = -(-FRAMES // 64)
    mask = dk.BlockMask.from_dense(torch.rand(blocks, blocks) < 0.3, 64)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    heads = torch.tensor([True, False] * 3)
    backward(dk.block_attention(q, k, v, lengths=lengths, block_mask=mask, window=(256, 64), head_mask=heads))


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
    total, norm = dk.dropout_add_layer_norm(x, y, weight, bias, p=0.1, seed=seed(), scale=0.5)
    torch.autograd.backward([total, norm], [torch.zeros_like(total), torch.zeros_like(norm)])


@problem
def packing(dtype: torch.dtype) -> None:
    packed, offset = dk.pack(leaf(dtype, len(LENGTHS), FRAMES, WIDTH), torch.tensor(LENGTHS, dtype=torch.int32))
    backward(dk.unpack(packed, offset, FRAMES))


SHAPES = [(HIDDEN, WIDTH), (HIDDEN,), (WIDTH, HIDDEN), (WIDTH,)]


def segments() -> Tensor:
    """Of the two matrices: components of rows, and components of columns."""
    first = (0, 1, COMPONENTS, HIDDEN // COMPONENTS * WIDTH, 0)
    return torch.tensor([first, (2, WIDTH, COMPONENTS, HIDDEN // COMPONENTS, 0)])


@problem
def importance(dtype: torch.dtype) -> None:
    weights, grads = ([torch.zeros(shape, dtype=dtype) for shape in SHAPES] for _ in range(2))
    dk.importance_(torch.zeros(COMPONENTS), weights, grads, segments(), torch.ones(COMPONENTS))


@problem
def adamw_importance(dtype: torch.dtype) -> None:
    tensors = [[torch.zeros(shape, dtype=dtype) for shape in SHAPES] for _ in range(4)]
    steps = [torch.zeros(()) for _ in SHAPES]
    groups = torch.tensor([[1e-3, 0.9, 0.999, 1e-8, 0.01, 0.0]], dtype=torch.float64)
    group_of = torch.zeros(len(SHAPES), dtype=torch.int64)
    ema, counts = torch.zeros(COMPONENTS), torch.ones(COMPONENTS)
    dk.adamw_importance_(*tensors, steps, groups, group_of, ema, segments(), counts, grad_factor=torch.ones(()))


@problem
def gather_components(dtype: torch.dtype) -> None:
    tensors = [torch.zeros(1, COMPONENTS, HIDDEN // COMPONENTS * WIDTH, dtype=dtype)]
    tensors.append(torch.zeros(WIDTH, COMPONENTS, HIDDEN // COMPONENTS, dtype=dtype))
    index = torch.tensor([[0, -1], [2, 0], [-1, 0], [-1, -1]])
    given = [tensor[:, :1].contiguous() for tensor in tensors]
    dk.gather_components(tensors, [index, index], given)
