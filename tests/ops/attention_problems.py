"""Problems for the tests of block_attention, and the check against float64."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dmao_kernels import BlockMask, block_attention
from dmao_kernels.ops.block_attention import reference
from dmao_kernels.ops.block_attention.reference import _softmax, block_attention_reference
from dmao_kernels.testing import (
    Poison,
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)
from tests.ops.common import ids

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
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def packed(problem: Problem, lengths: Tensor) -> Problem:
    """The problem without its padding."""
    inside = rows_of(lengths, problem["q"].shape[1])
    rows = {name: problem[name].detach()[inside].requires_grad_() for name in "qkv"}
    return detached(problem) | rows | {"offsets": ids(0, *lengths.cumsum(0).tolist())}


def unused(problem: Problem) -> Tensor:
    """bool, as q without its last axis: rows and heads that must not be read."""
    q, lengths, head_mask = problem["q"], problem.get("lengths"), problem.get("head_mask")
    unused = torch.zeros(q.shape[:-1], dtype=torch.bool, device=q.device)
    if lengths is not None:
        unused |= ~rows_of(lengths, q.shape[1])[..., None]
    if head_mask is not None:
        unused |= ~head_mask
    return unused


def _softmax_without_its_sum(scores: Tensor, visible: Tensor) -> Tensor:
    weights = _softmax(scores, visible).detach()
    return weights * (1 + scores - scores.detach())


def magnitudes(problem: Problem, grad: Tensor) -> dict[int | str, float]:
    """How large the terms of each gradient are, in float64.

    The gradient of a score is w (g - sum w g). Fused attention takes the sum from the rounded output, so that the
    two do not cancel to more digits than that has; with one visible key they should cancel to zero.
    """
    with mock.patch.object(reference, "_softmax", _softmax_without_its_sum):
        _, grads = outputs_and_gradients(block_attention_reference, **to_float64(problem), grad_output=grad)
    return {name: gradient.abs().max().item() if gradient.numel() else 0.0 for name, gradient in grads.items()}


def check_against_oracle(problem: Problem, *, largest_score: float = 10.0, **conditions: Any) -> None:
    """Output and all gradients, by the house's rule, from poisoned memory; what must not be read is NaN.

    A weight is exp(score - logarithm of the sum) in float32, and so known up to epsilon times the largest score.
    """
    slack = max(1.0, largest_score * torch.finfo(torch.float32).eps / torch.finfo(problem["q"].dtype).eps)
    problem = problem | conditions
    grad = torch.randn(problem["q"].shape).to(problem["q"])
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
    terms = magnitudes(problem, grad)
    for name, gradient in true_grads.items():
        options = {"slack": slack, "magnitude": terms[name], "name": f"gradient {name}"}
        assert_close_to_oracle(our_grads[name], same_grads[name], gradient, **options)
        if name in ("q", "k", "v"):
            assert not our_grads[name][dead].any()
