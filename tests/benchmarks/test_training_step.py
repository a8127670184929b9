"""The gate of the whole training step looks at the model that is timed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import training_step
from benchmarks.registry import Problem


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "LONGEST", 160)


def make(dropped: bool) -> Problem:
    return training_step.make(1, "relative", 2, torch.float32, padded=True, dropped=dropped, compiled=False)


@pytest.mark.parametrize("dropped", [False, True], ids=["whole", "half of the FFN"])
def test_ours_must_be_right(short: None, dropped: bool) -> None:
    problem = make(dropped)
    problem.gate()
    ours = problem.candidates["ours"].model
    assert len(ours.blocks[0].ffn1.w1.weight) == (2 if dropped else 4) * 384
    ours.blocks[0].ffn1.w1.weight.register_hook(lambda gradient: 1.5 * gradient)
    with pytest.raises(AssertionError, match=r"gradient of blocks\.0\.ffn1\.w1\.weight"):
        problem.gate()
