"""The gate of the whole training step looks at the model that is timed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import training_step
from benchmarks._gradients import assert_as_good
from benchmarks.registry import Problem

ONE = {"loss": torch.ones(()), "w": torch.ones(4), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    ("found", "coarse", "message"),
    [
        ({"w": torch.ones(1)}, {}, r"gradient of w: \[1\], not \[4\]"),
        ({"w": torch.full((4,), torch.nan)}, {}, "gradient of w: error nan exceeds"),
        ({"w": -torch.ones(4)}, {"w": torch.full((4,), torch.inf)}, "gradient of w: what it is compared with is not"),
        ({"loss": torch.tensor(torch.inf)}, {}, "loss: error inf exceeds"),
        ({"b": torch.ones(4)}, {}, "gradient of b: error 2 exceeds 2e-06"),
    ],
)
def test_what_no_gate_lets_pass(found: dict, coarse: dict, message: str) -> None:
    assert_as_good(ONE, ONE, 1e-3, ONE)
    with pytest.raises(AssertionError, match=message):
        assert_as_good(ONE | found, ONE, 1e-3, ONE | coarse)


def test_every_gradient_is_there() -> None:
    with pytest.raises(AssertionError, match="gradient of b: there is none"):
        assert_as_good({"loss": ONE["loss"], "w": ONE["w"]}, ONE, 1e-3)


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
