"""Random problems of dropout_add and dropout_add_layer_norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmao_kernels import dropout_add, dropout_add_layer_norm
from dmao_kernels.ops.dropout_add.reference import dropout_add_layer_norm_reference, dropout_add_reference
from tests.fuzz.problem import Draw, Problem, differentiable


def both(*arguments: Any, **options: Any) -> Tensor:
    """The sum and its norm as one tensor."""
    return torch.stack(dropout_add_layer_norm(*arguments, **options))


def both_reference(*arguments: Any, **options: Any) -> Tensor:
    return torch.stack(dropout_add_layer_norm_reference(*arguments, **options))


def problem(draw: Draw) -> Problem:
    dtype = draw.dtype()
    shape = (*draw.one_of((), (draw.size(3),)), draw.size(60), draw.size(400))
    x, y = draw.tensor(*shape, dtype=dtype), draw.tensor(*shape, dtype=dtype)
    p = draw.one_of(0.0, 0.1, 0.9)
    options = {"p": p, "seed": draw.seed(), "scale": draw.one_of(1.0, 0.5, -2.0)}
    if draw.chance() or shape[-1] == 0:
        x = x if draw.chance(0.7) else None
        return differentiable(draw, dropout_add, dropout_add_reference, x, y, rows=1, **options)
    weight, bias = draw.tensor(shape[-1], dtype=dtype), draw.tensor(shape[-1], dtype=dtype)
    # Few columns that happen to be alike have hardly any variance, which would amplify all rounding.
    options |= {"eps": 0.1, "magnitude": 20 / (1 - p)}
    return differentiable(draw, both, both_reference, x, y, weight, bias, **options)
