"""Gradients of block_attention: one operator of its own, which is not differentiable again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmao_kernels._library import register_autograd
from dmao_kernels.ops._autograd import no_double_backward

_INPUTS = 21
# Where q, k, v and rel_pos, content_bias, position_bias stand among them: what has gradients, in the order in
# which the backward operator returns them.
_DIFFERENTIABLE = (0, 1, 2, 15, 16, 17)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors = [value if isinstance(value, Tensor) else None for value in inputs]
    ctx.save_for_backward(*tensors, *output)
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    # No gradient of zeros for lse, which nobody but the backward pass sees.
    ctx.set_materialize_grads(False)


def _backward(ops: Any, ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [None] * _INPUTS
    if grad_out is None:
        return tuple(grads)
    *tensors, out, lse = ctx.saved_tensors
    inputs = [other if tensor is None else tensor for tensor, other in zip(tensors, ctx.others, strict=True)]
    found = ops.block_attention_backward(grad_out, *inputs, out, lse)
    for index, grad in zip(_DIFFERENTIABLE, found, strict=True):
        grads[index] = grad if ctx.needs_input_grad[index] else None
    return tuple(grads)


register_autograd("block_attention", _backward, setup_context=_setup_context)
register_autograd("block_attention_backward", no_double_backward("block_attention"))
