"""Where the operators of Triton kernels run."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmao_kernels import _library


def test_triton_launches_on_the_gpu_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the first tensor, also in a list, is set while the function runs, unless it is the current one."""
    events: list[object] = []

    @contextlib.contextmanager
    def device(chosen):
        events.append(chosen.index)
        yield
        events.append("left")

    def function(*arguments):
        events.append("runs")
        return len(arguments)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_library, "_triton_function", lambda module, op: function)
    with FakeTensorMode():
        current, other = torch.empty(2, device="cuda:0"), torch.empty(2, device="cuda:1")
    assert _library._run_triton("module", "op", None, 0.5, [other, current], current) == 4
    assert events == [1, "runs", "left"]
    events.clear()
    assert _library._run_triton("module", "op", current, other) == 2
    assert events == ["runs"]
