"""Shapes of dropout_add, dropout_add_layer_norm and its backward, for torch.compile and torch.export."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmao_kernels._library import register_fake


@register_fake("dropout_add")
def _dropout_add(x: Tensor | None, y: Tensor, p: float, seed: Tensor | None, scale: float) -> Tensor:
    return (y if x is None else x).new_empty(y.shape)


@register_fake("dropout_add_layer_norm")
def _dropout_add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, p: float, seed: Tensor | None, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = weight.new_empty((math.prod(x.shape[:-1]), 2))
    return x.new_empty(x.shape), x.new_empty(x.shape), statistics


@register_fake("dropout_add_layer_norm_backward")
def _dropout_add_layer_norm_backward(
    grad_sum: Tensor | None,
    grad_norm: Tensor,
    sum: Tensor,
    weight: Tensor,
    statistics: Tensor,
    p: float,
    seed: Tensor | None,
    scale: float,
    need_y: bool,
    y_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_y = sum.new_empty(sum.shape if need_y else (0,), dtype=y_dtype)
    return sum.new_empty(sum.shape), grad_y, weight.new_empty(weight.shape), weight.new_empty(weight.shape)
