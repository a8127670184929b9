"""A training with an event on emulated CUDA kernels: the losses, and the event, of the native kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dmao.schedule import Schedule

import dmao_kernels
from dmao_kernels import dispatch
from tests.triton.test_trainer import train


@pytest.fixture
def by_operation(emulated: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has CUDA kernels runs them, the others stay where they are; gives the operations that did."""
    ran: list[str] = []

    def kernels_of(op: str, tensors: Any) -> str:
        if op not in dispatch._DTYPES["cuda-emulated"]:
            return "cpu"
        ran.append(op)
        return "cuda-emulated"

    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.setattr(dispatch, "_kernels_of", kernels_of)
    return ran


EXPECTED = {
    "feed-forward": {"component_ffn", "adamw_importance_", "gather_components"},
    "conformer": {"component_ffn", "masked_linear", "block_attention", "adamw_importance_", "gather_components"},
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("model", "storage"), [("feed-forward", "slots"), pytest.param("conformer", "tight", marks=pytest.mark.slow)]
)
def test_as_on_the_cpu(model: str, storage: str, by_operation: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"schedule": Schedule(start=5, events=1, fraction=0.3), "split": "halves"}
    found = train(model, "cpu", storage, **options)
    assert set(by_operation) >= EXPECTED[model]
    monkeypatch.undo()
    with dmao_kernels.use_backend("cpu"):
        expected = train(model, "cpu", storage, **options)
    assert len(found["events"]) == len(expected["events"]) > 0
    assert all(dropped and grown for dropped, grown in found["events"])
    # TF32 keeps 11 bits of an operand.
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=5e-3, atol=1e-3)
