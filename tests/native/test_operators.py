"""Where the operators of Triton kernels run."""

from __future__ import annotations

import contextlib

import pytest
import torch

from dmao_kernels import _library


def test_triton_launches_on_the_gpu_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the first tensor, also in a list, the device is set while the function runs."""
    events: list[object] = []

    @contextlib.contextmanager
    def device_of(tensor):
        events.append(tensor)
        yield
        events.append("left")

    def function(*arguments):
        events.append("runs")
        return len(arguments)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(_library, "_triton_function", lambda module, op: function)
    first, other = torch.zeros(2), torch.ones(2)
    assert _library._run_triton("module", "op", None, 0.5, [first, other], other) == 4
    assert events[0] is first
    assert events[1:] == ["runs", "left"]
