"""What the tests of Triton kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.ops import common

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
    **options: Any,
) -> tuple[Tensor, dict[int | str, Tensor]]:
    """As tests.ops.common has it, with the slack of TF32 where float32 is multiplied so."""
    if inputs[0].dtype == torch.float32 and multiplies_in_tf32():
        slack *= _TF32_UNITS
    return common.check_against_oracle(op, reference, inputs, *rest, slack=slack, **options)


def same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
