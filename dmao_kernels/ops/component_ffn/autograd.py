"""Gradients of component_ffn: one operator of its own, which is not differentiable again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w1, b1, w2, b2, live, components, p, seed, activation, _keep = inputs
    ctx.save_for_backward(x, w1, w2, live, seed, output[1])
    ctx.arguments = components, p, activation, b1 is not None, b2 is not None
    # No gradient of zeros for the pre-activations, which nobody but the backward pass sees.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 11
    x, w1, w2, live, seed, pre_activation = ctx.saved_tensors
    components, p, activation, bias1, bias2 = ctx.arguments
    grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = torch.ops.dmao.component_ffn_backward(
        grad_y, x, w1, w2, live, pre_activation, components, p, seed, activation, bias1, bias2
    )
    grad_biases = grad_b1 if bias1 else None, grad_b2 if bias2 else None
    return grad_x, grad_w1, grad_biases[0], grad_w2, grad_biases[1], None, None, None, None, None, None


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "component_ffn: double backward is not supported; use the reference backend "
        "(dmao_kernels.use_backend('reference')) for second derivatives"
    )


torch.library.register_autograd("dmao::component_ffn", _backward, setup_context=_setup_context)
torch.library.register_autograd("dmao::component_ffn_backward", _double_backward)
