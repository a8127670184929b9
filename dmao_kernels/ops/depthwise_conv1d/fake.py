"""Shapes of depthwise_conv1d and its backward, for torch.compile and torch.export."""

from __future__ import annotations

from torch import Tensor

from dmao_kernels._library import register_fake


@register_fake("depthwise_conv1d")
def _depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, offsets: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape)


@register_fake("depthwise_conv1d_backward")
def _depthwise_conv1d_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, lengths: Tensor | None, offsets: Tensor | None, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0] if bias else 0)
