"""What tests of operations in CUDA C++ share: they run on the host, float32 in TF32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.triton.common import check_against_oracle

# Units of rounding of TF32, 2^-10, in those of float32, 2^-23.
_TF32 = 2.0**13


def slack_of(dtype: torch.dtype, terms: int) -> float:
    """How many units of rounding of a dtype are allowed: few terms may cancel, and those of the peer be exact."""
    slack = 2.0 if terms >= 32 else 4.0 if terms >= 4 else 32.0
    return slack * _TF32 if dtype == torch.float32 else slack


def check(
    op: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Any], *rest: Any, **options: Any
) -> dict[int | str, Tensor]:
    """`check_against_oracle` with the slack of the dtype: all gradients."""
    x = inputs[0]
    return check_against_oracle(op, reference, inputs, *rest, slack=slack_of(x.dtype, min(x.shape)), **options)[1]
