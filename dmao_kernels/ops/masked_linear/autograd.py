"""Gradients of masked_linear: one operator of its own, which is not differentiable again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmao_kernels._library import register_autograd
from dmao_kernels.ops._autograd import no_double_backward


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w, _b, *offsets, block, activation, _keep = inputs
    need_x, need_w, need_b = ctx.needs_input_grad[:3]
    ctx.save_for_backward(x, w, *offsets, output[1])
    ctx.arguments = block, activation, need_x, need_w, need_b
    # No gradient of zeros for the pre-activations, which nobody but the backward pass sees.
    ctx.set_materialize_grads(False)


def _backward(ops: Any, ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 7
    if grad_y is None:
        return (None, None, None, *nothing)
    x, w, *offsets, pre_activation = ctx.saved_tensors
    block, activation, *needs = ctx.arguments
    grads = ops.masked_linear_backward(grad_y, x, w, *offsets, block, pre_activation, activation, *needs)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *nothing)


register_autograd("masked_linear", _backward, setup_context=_setup_context)
register_autograd("masked_linear_backward", no_double_backward("masked_linear"))
