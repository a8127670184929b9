"""Gradients of component_ffn: one operator of its own, which is not differentiable again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmao_kernels._library import register_autograd
from dmao_kernels.ops._autograd import no_double_backward


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w1, _b1, w2, _b2, live, components, p, seed, activation, _keep = inputs
    ctx.save_for_backward(x, w1, w2, live, seed, output[1])
    ctx.arguments = components, p, activation, tuple(ctx.needs_input_grad[:5])
    # No gradient of zeros for the pre-activations, which nobody but the backward pass sees.
    ctx.set_materialize_grads(False)


def _backward(ops: Any, ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 11
    x, w1, w2, live, seed, pre_activation = ctx.saved_tensors
    components, p, activation, needs = ctx.arguments
    grads = ops.component_ffn_backward(grad_y, x, w1, w2, live, pre_activation, components, p, seed, activation, *needs)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 6)


register_autograd("component_ffn", _backward, setup_context=_setup_context)
register_autograd("component_ffn_backward", no_double_backward("component_ffn"))
