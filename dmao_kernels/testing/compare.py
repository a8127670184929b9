"""The comparison rule of this library: err(kernel) <= 2 err(PyTorch in the same dtype) + rounding slack."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_close_to_oracle(
    ours: Tensor,
    torch_same_dtype: Tensor,
    fp64: Tensor,
    *,
    slack: float = 1.0,
    magnitude: float | None = None,
    name: str = "output",
) -> None:
    """Asserts that `ours` is about as close to the truth as PyTorch is in the same dtype.

    Errors are measured against the float64 result, by largest and by root mean square deviation; both must be
    at most twice PyTorch's plus `slack` units of rounding (machine epsilon of ours' dtype times `magnitude`).
    NaN and infinity are allowed only where the oracle has the same.

    Args:
        ours: the kernel's result.
        torch_same_dtype: PyTorch's result from the same inputs in the same dtype.
        fp64: the result from the same inputs converted to float64.
        slack: rounding slack in units of machine epsilon times the magnitude.
        magnitude: of what is rounded on the way, where that cancels; None: the largest of the result.
        name: what is compared, for the message.

    Raises:
        AssertionError: a shape or dtype differs, or the error is too large.
    """
    assert fp64.dtype == torch.float64, f"{name}: the oracle must be float64, got {fp64.dtype}"
    assert ours.shape == torch_same_dtype.shape == fp64.shape, (
        f"{name}: shapes differ: ours {list(ours.shape)}, torch {list(torch_same_dtype.shape)}, fp64 {list(fp64.shape)}"
    )
    assert ours.dtype == torch_same_dtype.dtype, (
        f"{name}: dtypes differ: ours {ours.dtype}, torch {torch_same_dtype.dtype}"
    )
    if ours.numel() == 0:
        return
    finite = fp64.isfinite()
    same = torch.allclose(ours.double()[~finite], fp64[~finite], rtol=0.0, atol=0.0, equal_nan=True)
    assert same, f"{name}: NaN or infinity where float64 has another value"
    assert ours[finite].isfinite().all(), f"{name}: NaN or infinity where float64 is finite"

    truth = fp64[finite]
    if truth.numel() == 0:
        return
    unit = torch.finfo(ours.dtype).eps * (truth.abs().max().item() if magnitude is None else magnitude)
    for kind in ("largest", "root mean square"):
        error = _deviation(ours[finite], truth, kind)
        bound = 2 * _deviation(torch_same_dtype[finite], truth, kind) + slack * unit
        assert error <= bound, f"{name}: {kind} error {error:.3e} exceeds {bound:.3e} (largest value {unit:.3e} / eps)"


def _deviation(values: Tensor, truth: Tensor, kind: str) -> float:
    difference = (values.double() - truth).abs()
    return (difference.max() if kind == "largest" else difference.square().mean().sqrt()).item()
