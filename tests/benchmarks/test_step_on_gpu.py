"""The comparison of whole steps on a GPU, as far as it goes without one."""

from __future__ import annotations

import pytest
import torch
from dmao.config import load_config
from dmao.step import build_model

from benchmarks import step_on_gpu
from dmao_kernels import compact

TINY = ["device=cpu", "data.batch_seconds=15", "grow_and_drop.observe_every=1"]
TINY += ["model={width: 16, blocks: 1, head_dim: 4, kernel: 3, front_channels: [2, 4, 4, 2]}"]


def test_prints_ratio_and_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(step_on_gpu, "WARM", 0)
    monkeypatch.setattr(step_on_gpu, "ROUNDS", 2)
    step_on_gpu.run(load_config(None, TINY))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["ours", "plain PyTorch", "ours / plain", "memory"]
    assert lines[-1].startswith("memory: computed 0.0")


def test_nothing_is_timed_that_is_wrong() -> None:
    model, batch = build_model(load_config(None, TINY), step_on_gpu.OUTPUTS), step_on_gpu.random_batch(15)
    plain = compact(model).train()
    step_on_gpu.check(model, plain, batch)
    with torch.no_grad():
        plain.output.bias += torch.arange(step_on_gpu.OUTPUTS)
    with pytest.raises(AssertionError, match="not close"):
        step_on_gpu.check(model, plain, batch)
