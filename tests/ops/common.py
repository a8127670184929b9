"""What the tests of all operations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import dmao_kernels

native = pytest.mark.skipif(dmao_kernels.cpu_capability() is None, reason="no native library")
BACKENDS = [pytest.param("cpu", marks=native), "reference"]
DTYPES = (torch.float32, torch.bfloat16)
SEED = torch.tensor([0x1234_5678_9ABC_DEF])


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_threads_do_not_change_a_bit(
    compute: Callable[[], Sequence[Tensor]], counts: Sequence[int] = (1, 2, 5, 2)
) -> None:
    """Nor does running again with as many threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            results.append(compute())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
