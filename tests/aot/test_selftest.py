"""The self-test as it would run on a GPU, up to its launches: numbers are made up, everything else has to go well."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels import dispatch
from dmao_kernels.testing.mock_driver import mock_gpu
from dmao_kernels.testing.selftest.numerics import checks

NO_KERNEL = {"conv3x3"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_check_launches(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_kernels_of", lambda op, tensors: "triton")
    launched = {}
    with mock_gpu(90) as launches:
        monkeypatch.setattr(dispatch, "_forced", None)  # what has no kernel takes the reference, as on a GPU
        for check in checks("cpu", (dtype,)):
            launched[check.op, check.name] = len(launches)
            launches.clear()
            assert check.backend == ("reference" if check.op in NO_KERNEL else "triton")
            # Memory that nobody has written is neither right nor the same in every call.
            assert check.problem.startswith("AssertionError") or not check.problem, (check.op, check.problem)
    empty = {key for key, count in launched.items() if count == 0}
    assert {op for op, _ in empty} <= NO_KERNEL | {"component_ffn"}
    assert ("component_ffn", "relu, no row") in launched
    assert len(launched) > 18
