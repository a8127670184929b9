"""Random problems of masked_linear."""

from __future__ import annotations

import torch

from dmao_kernels import BlockMask, masked_linear
from dmao_kernels.block_mask import BLOCK_SIZES
from dmao_kernels.ops.masked_linear.reference import LINEAR_ACTIVATIONS, masked_linear_reference
from tests.fuzz.problem import Draw, Problem, differentiable


def problem(draw: Draw) -> Problem:
    dtype = draw.dtype()
    d, d_out = draw.size(300), 2 * draw.size(150)
    shape = (*draw.one_of((), (draw.size(3),)), draw.size(150), d)
    x = draw.tensor(*shape, dtype=dtype)
    w = draw.tensor(d_out, d, dtype=dtype, scale=max(d, 1) ** -0.5)
    b = draw.tensor(d_out, dtype=dtype) if draw.chance() else None
    mask = None
    if draw.chance(0.8):
        full = BlockMask.full(w, draw.one_of(*BLOCK_SIZES))
        grid = torch.rand(full.rows, full.columns, generator=draw.generator) < draw.one_of(0.0, 0.1, 0.5, 0.9, 1.0)
        mask = BlockMask.from_dense(grid, full.block)
        with torch.no_grad():
            w[~mask.elements(d_out, d)] = torch.nan
    activation = draw.one_of(*LINEAR_ACTIVATIONS)
    return differentiable(draw, masked_linear, masked_linear_reference, x, w, b, mask, activation=activation)
