"""What the tests of Triton kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmao_kernels.testing import (
    Poison,
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Units of rounding of TF32, 2^-10, in those of float32, 2^-23.
_TF32_UNITS = 2.0**13


def multiplies_in_tf32() -> bool:
    """Whether float32 may be multiplied in TF32; kernels in CUDA C++ have nothing else."""
    return torch.backends.cuda.matmul.allow_tf32


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Two ways to compute products in float32."""
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if multiplies_in_tf32() else {}
    torch.testing.assert_close(ours, theirs, **tolerance)


def random_tensors(device: str, dtype: torch.dtype, shapes: list[tuple[tuple[int, ...], float]]) -> list[Tensor]:
    """A leaf of normally distributed values for each (shape, scale); the same values on every device."""
    return [(torch.randn(shape) * scale).to(device, dtype).requires_grad_() for shape, scale in shapes]


def check_against_oracle(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: list[Any],
    *rest: Any,
    slack: float = 1.0,
    prepare: Callable[[list[Any]], None] | None = None,
    **options: Any,
) -> tuple[Tensor, dict[int | str, Tensor]]:
    """op(*inputs, *rest, **options) and all gradients, by the house's rule, from poisoned memory.

    prepare: changes the copies of the inputs that op gets, where that must not matter (dead parts).
    """
    if inputs[0].dtype == torch.float32 and multiplies_in_tf32():
        slack *= _TF32_UNITS
    with torch.no_grad():
        shape = reference(*inputs, *rest, **options).shape
    grad = torch.randn(shape).to(next(tensor for tensor in inputs if tensor is not None))
    poison = Poison()
    guarded = [None if tensor is None else poison.around(tensor) for tensor in inputs]
    if prepare is not None:
        with torch.no_grad():
            prepare(guarded)
    with nan_filled_empty():
        ours, our_grads = outputs_and_gradients(op, *guarded, *rest, grad_output=grad, **options)
    poison.check()
    same, same_grads = outputs_and_gradients(reference, *inputs, *rest, grad_output=grad, **options)
    truth, true_grads = outputs_and_gradients(reference, *to_float64(inputs), *rest, grad_output=grad, **options)
    assert_close_to_oracle(ours, same, truth, slack=slack)
    assert our_grads.keys() == true_grads.keys()
    for key, gradient in true_grads.items():
        assert_close_to_oracle(our_grads[key], same_grads[key], gradient, name=f"gradient {key}", slack=slack)
    return ours, our_grads


def same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
