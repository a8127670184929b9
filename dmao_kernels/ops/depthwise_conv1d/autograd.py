"""Gradients of depthwise_conv1d: one operator of its own, which is not differentiable again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmao_kernels._library import register_autograd
from dmao_kernels.ops._autograd import no_double_backward


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, lengths, offsets = inputs
    ctx.save_for_backward(x, weight, lengths, offsets)
    ctx.bias = bias is not None


def _backward(ops: Any, ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, lengths, offsets = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = ops.depthwise_conv1d_backward(grad_y, x, weight, lengths, offsets, ctx.bias)
    return grad_x, grad_weight, grad_bias if ctx.bias else None, None, None


register_autograd("depthwise_conv1d", _backward, setup_context=_setup_context)
register_autograd("depthwise_conv1d_backward", no_double_backward("depthwise_conv1d"))
