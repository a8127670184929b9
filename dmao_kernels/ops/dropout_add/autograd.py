"""Gradients of dropout_add (itself, without x) and of dropout_add_layer_norm (an operator of its own)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmao_kernels._library import register_autograd
from dmao_kernels.ops._autograd import no_double_backward


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _x, y, p, seed, scale = inputs
    ctx.save_for_backward(seed)
    ctx.arguments = p, scale, y.dtype


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    p, scale, dtype = ctx.arguments
    grad_y = _grad_y(ops, grad, p, seed, scale, dtype) if ctx.needs_input_grad[1] else None
    return (grad if ctx.needs_input_grad[0] else None), grad_y, None, None, None


def _grad_y(ops: Any, grad: Tensor, p: float, seed: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    grad = grad.to(dtype)
    return grad if p == 0 and scale == 1 else ops.dropout_add(None, grad, p, seed, scale)


def _setup_norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _x, y, weight, _bias, p, seed, scale, _eps = inputs
    total, _norm, statistics = output
    ctx.save_for_backward(total, weight, statistics, seed)
    ctx.arguments = p, scale, y.dtype
    ctx.set_materialize_grads(False)  # often one of the two results is not used


def _norm_backward(
    ops: Any, ctx: Any, grad_sum: Tensor | None, grad_norm: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, weight, statistics, seed = ctx.saved_tensors
    p, scale, y_dtype = ctx.arguments
    nothing = (None,) * 4
    if grad_norm is None:
        if grad_sum is None:
            return (None,) * 8
        return (grad_sum, _grad_y(ops, grad_sum, p, seed, scale, y_dtype), None, None, *nothing)
    same = p == 0 and scale == 1 and y_dtype == total.dtype
    need_y = ctx.needs_input_grad[1] and not same
    grad_x, grad_y, grad_weight, grad_bias = ops.dropout_add_layer_norm_backward(
        grad_sum, grad_norm, total, weight, statistics, p, seed, scale, need_y, y_dtype
    )
    return grad_x, grad_x if same else grad_y if need_y else None, grad_weight, grad_bias, *nothing


register_autograd("dropout_add", _backward, setup_context=_setup_context)
register_autograd("dropout_add_layer_norm", _norm_backward, setup_context=_setup_norm_context)
register_autograd("dropout_add_layer_norm_backward", no_double_backward("dropout_add_layer_norm"))
