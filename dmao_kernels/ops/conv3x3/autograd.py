"""Gradients of conv3x3: of the images by another conv3x3, of the filters by an operator of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmao_kernels.ops._autograd import no_double_backward


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, taps, _bias = inputs
    ctx.save_for_backward(x, taps)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, taps = ctx.saved_tensors
    grad_x = grad_taps = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.dmao.conv3x3(grad_y, taps.flip(0, 1).transpose(2, 3), None)
    if any(ctx.needs_input_grad[1:]):
        grad_taps, grad_bias = torch.ops.dmao.conv3x3_backward(grad_y, x)
    return grad_x, grad_taps, grad_bias if ctx.needs_input_grad[2] else None


torch.library.register_autograd("dmao::conv3x3", _backward, setup_context=_setup_context)
torch.library.register_autograd("dmao::conv3x3_backward", no_double_backward("conv3x3"))
