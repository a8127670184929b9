"""Gradients of conv3x3: of the images and of the filters, each by an operator of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmao_kernels._library import register_autograd
from dmao_kernels.ops._autograd import no_double_backward


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, list[int]], output: tuple[Tensor, Tensor]
) -> None:
    x, taps, _bias, valid, pooling = inputs
    _y, choice = output
    ctx.mark_non_differentiable(choice)
    ctx.save_for_backward(x, taps, valid, choice)
    ctx.pooling = pooling


def _backward(ops: Any, ctx: Any, grad_y: Tensor, _grad_choice: Tensor | None) -> tuple[Tensor | None, ...]:
    x, taps, valid, choice = ctx.saved_tensors
    grad_x = grad_taps = grad_bias = None
    if ctx.needs_input_grad[0]:
        mirrored = taps.flip(0, 1).transpose(2, 3)
        grad_x = ops.conv3x3_backward_images(grad_y, choice, mirrored, x, valid, ctx.pooling)
    if any(ctx.needs_input_grad[1:3]):
        grad_taps, grad_bias = ops.conv3x3_backward_filters(grad_y, choice, x, valid, ctx.pooling)
    return grad_x, grad_taps, grad_bias if ctx.needs_input_grad[2] else None, None, None


_double_backward = no_double_backward("conv3x3")

register_autograd("conv3x3", _backward, setup_context=_setup_context)
register_autograd("conv3x3_backward_images", _double_backward)
register_autograd("conv3x3_backward_filters", _double_backward)
