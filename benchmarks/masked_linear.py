"""masked_linear against dense and block-sparse products: `make bench ARGS="-k masked_linear"`.

Forward (y = x w^T + b), dX = dy w and dW = dy^T x each for themselves. Peers: "dense" is PyTorch's product over all of
w, "masked dense" the same with the mask multiplied in; "torch BSR" and "scipy BSR" hold the live blocks and multiply
the transposed activations, their fastest way. Making those, and transposing, is not timed. Floor: 2 T d F flops times
the density, for each of the three.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from benchmarks.registry import Case, Problem, register
from dmao_kernels import BlockMask, masked_linear
from dmao_kernels.testing import assert_close_to_oracle

TOKENS, IN, OUT = 2000, 384, 1536
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
DIRECTIONS = ("fwd", "dX", "dW")


def random_mask(w: Tensor, block: int, density: float) -> BlockMask:
    """A mask of just that share of live blocks."""
    full = BlockMask.full(w, block)
    live = torch.zeros(full.count, dtype=torch.bool)
    live[torch.randperm(full.count)[: round(density * full.count)]] = True
    return BlockMask.from_dense(live.view(full.rows, full.columns), block)


def ours(direction: str, x: Tensor, w: Tensor, b: Tensor, grad: Tensor, mask: BlockMask | None) -> Callable[[], Tensor]:
    if direction == "fwd":
        return lambda: masked_linear(x, w, b, mask)
    blocks = (
        (None, None, None, None, 0)
        if mask is None
        else (mask.row_offsets, mask.column_ids, mask.column_offsets, mask.row_ids, mask.block)
    )
    needs = [direction == "dX", direction == "dW", False]
    nothing = x.new_empty(0)
    return lambda: torch.ops.dmao.masked_linear_backward(grad, x, w, *blocks, nothing, "none", *needs)[needs[1]]


def dense(direction: str, x: Tensor, w: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    if direction == "fwd":
        return F.linear(x, w, b)
    return grad @ w if direction == "dX" else grad.t() @ x


def masked_dense(direction: str, x: Tensor, w: Tensor, b: Tensor, grad: Tensor, live: Tensor) -> Tensor:
    if direction == "dW":
        return dense(direction, x, w, b, grad) * live
    return dense(direction, x, w * live, b, grad)


def add_block_sparse(problem: Problem, direction: str, x: Tensor, w: Tensor, grad: Tensor, block: int) -> None:
    """Adds the peers that multiply block-sparse matrices; w is masked."""
    if direction == "dW" or x.dtype != torch.float32:
        reason = "has no such product" if direction == "dW" else "has no bfloat16"
        problem.absent.update({"torch BSR": reason, "scipy BSR": reason})
        return
    matrix, right = (w, x) if direction == "fwd" else (w.t().contiguous(), grad)
    transposed = right.t().contiguous()
    torch_blocks = matrix.to_sparse_bsr((block, block))
    scipy_blocks = sparse.bsr_matrix(matrix.numpy(), blocksize=(block, block))
    problem.candidates["torch BSR"] = lambda: torch_blocks @ transposed
    problem.candidates["scipy BSR"] = lambda: scipy_blocks @ transposed.numpy()


def make(direction: str, shape: tuple[int, int, int], dtype: torch.dtype, block: int | None, density: float) -> Problem:
    """One product; block None: without a mask."""
    tokens, width, out = shape
    x, w = torch.randn(tokens, width), torch.randn(out, width).div(width**0.5)
    x, w, b, grad = (tensor.to(dtype) for tensor in (x, w, torch.randn(out), torch.randn(tokens, out)))
    mask = None if block is None else random_mask(w, block, density)
    live = torch.ones_like(w, dtype=torch.bool) if mask is None else mask.elements(out, width)
    run = ours(direction, x, w, b, grad, mask)

    def gate() -> None:
        expected = masked_dense(direction, x, w, b, grad, live)
        exact = masked_dense(direction, x.double(), w.double(), b.double(), grad.double(), live)
        assert_close_to_oracle(run(), expected, exact, name=direction)

    problem = Problem(
        {"ours": run, "dense": lambda: dense(direction, x, w, b, grad)},
        gate=gate,
        flops=2 * tokens * live.sum().item(),
        bytes=x.element_size() * (tokens * (width + out) + live.sum().item()),
    )
    if block is not None:
        problem.candidates["masked dense"] = lambda: masked_dense(direction, x, w, b, grad, live)
        add_block_sparse(problem, direction, x, w * live, grad, block)
    return problem


# All densities for one size of blocks, the same few for the others and for bfloat16.
KINDS = [(torch.float32, 64, density) for density in DENSITIES]
KINDS += [(torch.float32, block, density) for block in (32, 128) for density in (0.1, 0.5)]
KINDS += [(torch.bfloat16, 64, density) for density in (0.1, 0.5)]

for direction, (dtype, block, density) in itertools.product(DIRECTIONS, KINDS):
    allowed = density + (0.10 if block == 32 else 0.06)
    single = dtype == torch.float32
    register(
        Case(
            "masked_linear",
            f"d={IN} F={OUT} T={TOKENS} block={block} {density:.0%} live {direction}",
            partial(make, direction, (TOKENS, IN, OUT), dtype, block, density),
            dtype=dtype,
            targets={"dense": allowed, "torch BSR": 1.0, "scipy BSR": 1.0},
            quick=single and block == 64 and density == 0.5,
            rounds=5 if single else 3,  # PyTorch's products of bfloat16 take seconds where the CPU has none
            series=f"masked_linear block={block} {direction} {'fp32' if single else 'bf16'}",
            density=density,
        )
    )

for direction, shape in itertools.product(
    DIRECTIONS,
    ((7, 384, 1536), (2000, 384, 384), (2000, 384, 1536)),
):
    tokens, width, out = shape
    register(
        Case(
            "masked_linear",
            f"d={width} F={out} T={tokens} no mask {direction}",
            partial(make, direction, shape, torch.float32, None, 1.0),
            quick=direction == "fwd" and shape in ((7, 384, 1536), (2000, 384, 1536)),
        )
    )
