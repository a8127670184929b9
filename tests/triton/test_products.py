"""What the products of linear layers refuse. What they compute stands in the tests of the operations."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels.ops._triton.products import weight_rows


def test_weights_that_32_bits_do_not_reach() -> None:
    assert weight_rows("op", "w", torch.empty(2**15, 2**15, device="meta")).shape == (2**15, 2**15)
    for large in (
        torch.empty(2**16, 2**15, device="meta"),
        torch.empty_strided((3, 4), (2**30, 1), device="meta"),
    ):
        with pytest.raises(ValueError, match="op: Triton's kernels reach fewer than 2\\^31 elements of w"):
            weight_rows("op", "w", large)
