"""Rows more than 2^31 elements apart: an offset that is kept in 32 bits would read somewhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, block_attention, component_ffn, masked_linear

ROWS, STRIDE = 3, 2**31 + 3
WIDTH = 96  # of a row


@pytest.fixture(scope="module")
def wide() -> Tensor:
    """bfloat16 [3, 2^31 + 3], of which only the pages that are written take memory."""
    try:
        return torch.empty(ROWS, STRIDE, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for it: {error}")


def attention(x: Tensor) -> Tensor:
    q, k, v = x.unflatten(1, (3, 2, 16)).unbind(1)
    return block_attention(q, k, v, offsets=torch.tensor([0, ROWS], dtype=torch.int32)).flatten(1)


def linear(x: Tensor) -> Tensor:
    w = torch.linspace(-1, 1, 32 * WIDTH).view(32, WIDTH).to(x.dtype)
    return masked_linear(x, w, None, BlockMask.full(w, 32))


def ffn(x: Tensor) -> Tensor:
    w = torch.linspace(-1, 1, 32 * WIDTH).view(32, WIDTH).to(x.dtype)
    return component_ffn(x, w, None, w.t(), None)


@pytest.mark.skipif(dmao_kernels.cpu_capability() is None, reason="no native library")
@pytest.mark.parametrize("function", [attention, linear, ffn])
def test_rows_far_apart(function: Callable[[Tensor], Tensor], wide: Tensor) -> None:
    x = torch.randn(ROWS, WIDTH).bfloat16()
    far = wide[:, :WIDTH]
    far.copy_(x)
    results = []
    with dmao_kernels.use_backend("cpu"):
        for rows in (x, far):
            rows = rows.detach().requires_grad_()
            y = function(rows)
            results.append((y, *torch.autograd.grad(y, rows, torch.ones_like(y))))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)
