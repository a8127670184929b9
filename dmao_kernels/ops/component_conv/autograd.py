"""Gradients of component_conv: one operator of its own, which is not differentiable again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmao_kernels._library import register_autograd
from dmao_kernels.ops._autograd import no_double_backward

_INPUTS = 14


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, norm_weight, norm_bias, statistics_weight, live = inputs[:7]
    components, lengths, offsets, norm, eps, activation, _keep = inputs[7:]
    ctx.save_for_backward(x, weight, norm_weight, norm_bias, statistics_weight, live, *output[1:], lengths, offsets)
    ctx.arguments = components, norm, eps, activation, bias is not None
    # No gradients of zeros for what only the backward pass sees.
    ctx.set_materialize_grads(False)


def _backward(ops: Any, ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * _INPUTS
    *tensors, lengths, offsets = ctx.saved_tensors
    components, norm, eps, activation, bias = ctx.arguments
    grad_x, grad_weight, *vectors = ops.component_conv_backward(
        grad_y, *tensors, components, lengths, offsets, norm, eps, activation, bias
    )
    given = bias, tensors[2] is not None, tensors[3] is not None
    grads = [vector if is_given else None for vector, is_given in zip(vectors, given, strict=True)]
    return (grad_x, grad_weight, *grads, *(None,) * (_INPUTS - 5))


register_autograd("component_conv", _backward, setup_context=_setup_context)
register_autograd("component_conv_backward", no_double_backward("component_conv"))
