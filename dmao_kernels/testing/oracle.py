"""The float64 oracle: the same function on the same values in double precision, with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_float64(value: Any) -> Any:
    """The value with every floating point tensor in it (also inside lists, tuples, dicts) as float64 leaf."""
    return _changed(value, lambda tensor: tensor.to(torch.float64))


def in_own_memory(value: Any) -> Any:
    """The same with contiguous leaves that lie alone: PyTorch's bfloat16 products on AMX read beside strided rows."""
    return _changed(value, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        if not value.dtype.is_floating_point:
            return value
        return change(value.detach()).requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    return value


def outputs_and_gradients(
    function: Callable[..., Tensor], *args: Any, grad_output: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, dict[int | str, Tensor]]:
    """function(*args, **kwargs) and the gradient of every argument that requires grad.

    Arguments are detached first, so that calls do not see each other's gradients.

    Args:
        grad_output: gradient of the output, converted to its dtype; ones by default.

    Returns:
        The output, and the gradients by position or name of the argument; a gradient is zero where autograd
        returns none.
    """

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            return value.detach().requires_grad_(value.requires_grad)
        return value

    positional = [leaf(value) for value in args]
    named = {key: leaf(value) for key, value in kwargs.items()}
    output = function(*positional, **named)
    arguments: dict[int | str, Any] = dict(enumerate(positional))
    arguments.update(named)
    leaves = {key: value for key, value in arguments.items() if isinstance(value, Tensor) and value.requires_grad}
    if not leaves:
        return output.detach(), {}
    if grad_output is None:
        grad_output = torch.ones_like(output)
    found = torch.autograd.grad(output, list(leaves.values()), grad_output.to(output.dtype), allow_unused=True)
    gradients = {
        key: torch.zeros_like(value) if gradient is None else gradient
        for (key, value), gradient in zip(leaves.items(), found, strict=True)
    }
    return output.detach(), gradients
