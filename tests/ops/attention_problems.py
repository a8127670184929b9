"""Problems for the tests of block_attention, and the check against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, block_attention
from dmao_kernels.ops.block_attention.reference import block_attention_reference
from dmao_kernels.testing import (
    Poison,
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)

native = pytest.mark.skipif(
    not dmao_kernels.can_run("block_attention", torch.zeros(1))[0], reason="no native kernel of block_attention"
)
BACKENDS = [pytest.param("cpu", marks=native), "reference"]
DTYPES = (torch.float32, torch.bfloat16)
SEED = torch.tensor([0x1234_5678_9ABC_DEF])

Problem = dict[str, Any]


def make(
    batch: int, frames: int, heads: int, width: int, dtype: torch.dtype = torch.float32, *, reach: int | None = None
) -> Problem:
    """q, k, v [B, T, H, D] with scores of order one; with `reach` also rel_pos and both biases."""
    shapes = dict.fromkeys("qkv", (batch, frames, heads, width))
    if reach is not None:
        shapes |= {"rel_pos": (2 * reach + 1, heads, width)}
        shapes |= dict.fromkeys(("content_bias", "position_bias"), (heads, width))
    return {name: torch.randn(shape).to(dtype).requires_grad_() for name, shape in shapes.items()}


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def random_mask(frames: int, block: int, density: float = 0.5) -> BlockMask:
    grid = -(-frames // block)
    return BlockMask.from_dense(torch.rand(grid, grid) < density, block)


def detached(problem: Problem) -> Problem:
    """The same tensors as leaves of their own."""
    return {
        name: value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in problem.items()
    }


def rows_of(lengths: Tensor, frames: int) -> Tensor:
    """bool [B, T]: which rows of a padded batch are frames of an utterance."""
    return torch.arange(frames) < lengths[:, None]


def packed(problem: Problem, lengths: Tensor) -> Problem:
    """The problem without its padding."""
    inside = rows_of(lengths, problem["q"].shape[1])
    rows = {name: problem[name].detach()[inside].requires_grad_() for name in "qkv"}
    return detached(problem) | rows | {"offsets": int32(0, *lengths.cumsum(0).tolist())}


def unused(problem: Problem) -> Tensor:
    """bool, as q without its last axis: rows and heads that must not be read."""
    q, lengths, head_mask = problem["q"], problem.get("lengths"), problem.get("head_mask")
    unused = torch.zeros(q.shape[:-1], dtype=torch.bool)
    if lengths is not None:
        unused |= ~rows_of(lengths, q.shape[1])[..., None]
    if head_mask is not None:
        unused |= ~head_mask
    return unused


def check_against_oracle(problem: Problem, *, slack: float = 1.0, **conditions: Any) -> None:
    """Output and all gradients, by the house's rule, from poisoned memory; what must not be read is NaN."""
    problem = problem | conditions
    grad = torch.randn(problem["q"].shape).to(problem["q"].dtype)
    dead, head_mask = unused(problem), problem.get("head_mask")
    poison = Poison()
    floating = {name: value for name, value in problem.items() if getattr(value, "requires_grad", False)}
    guarded = {name: poison.around(value) for name, value in floating.items()}
    with torch.no_grad():
        for name, value in guarded.items():
            if name in "qkv":
                value[dead] = torch.nan
            elif head_mask is not None and value.shape[-2:-1] == head_mask.shape:
                value[..., ~head_mask, :] = torch.nan
    with nan_filled_empty():
        ours, our_grads = outputs_and_gradients(
            block_attention,
            **(problem | guarded),
            grad_output=grad.masked_fill(dead[..., None], torch.nan),
        )
    poison.check()
    same, same_grads = outputs_and_gradients(block_attention_reference, **problem, grad_output=grad)
    truth, true_grads = outputs_and_gradients(block_attention_reference, **to_float64(problem), grad_output=grad)
    assert_close_to_oracle(ours, same, truth, slack=slack)
    assert not ours[dead].any()
    assert our_grads.keys() == true_grads.keys()
    for name, gradient in true_grads.items():
        assert_close_to_oracle(our_grads[name], same_grads[name], gradient, slack=slack, name=f"gradient {name}")
        if name in ("q", "k", "v"):
            assert not our_grads[name][dead].any()
