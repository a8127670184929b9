"""Shapes of component_conv and its backward, for torch.compile and torch.export."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmao_kernels._library import register_fake


@register_fake("component_conv")
def _component_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    statistics_weight: Tensor | None,
    live: Tensor | None,
    components: int,
    lengths: Tensor | None,
    offsets: Tensor | None,
    norm: str,
    eps: float,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    stored = weight.shape[0]
    channels = stored if live is None else live.shape[0] * (stored // components if components else 0)
    rows = math.prod(x.shape[:-1])
    layer = norm != "none"
    return (
        x.new_empty((*x.shape[:-1], stored)),
        x.new_empty((rows if keep and (layer or activation != "none") else 0, channels)),
        x.new_empty((rows if keep and layer else 0,), dtype=torch.float32),
    )


@register_fake("component_conv_backward")
def _component_conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    statistics_weight: Tensor | None,
    live: Tensor | None,
    normed: Tensor,
    scales: Tensor,
    components: int,
    lengths: Tensor | None,
    offsets: Tensor | None,
    norm: str,
    eps: float,
    activation: str,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    stored = weight.shape[0]
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(stored if bias else 0),
        weight.new_empty(0 if norm_weight is None else stored),
        weight.new_empty(0 if norm_bias is None else stored),
    )
