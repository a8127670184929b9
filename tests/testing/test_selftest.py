"""The self-test: it passes here, it notices what is wrong, and what is wrong has no times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels.testing.selftest import numerics, speed
from dmao_kernels.testing.selftest.report import Time
from dmao_kernels.testing.selftest.run import _faster, selftest

# TRITON_INTERPRET is of another process; see tests/triton for the kernels themselves.


def test_all_is_right_here(tmp_path: Path) -> None:
    said: list[str] = []
    report = selftest("cpu", tmp_path, quick=True, say=said.append)
    assert report.wrong == report.missing == []
    assert {check.op for check in report.checks} >= {"component_ffn", "block_attention", "adamw_importance_", "pack"}
    assert {check.dtype for check in report.checks} == {"float32", "bfloat16"}
    assert [run.storage for run in report.trainings] == ["tight", "slots"]
    assert {time.op for time in report.times} >= {"component_ffn", "block_attention", "adamw_importance_", "unpack"}
    assert all(len(time.microseconds) > 1 and time.share > 0 for time in report.times)
    data = json.loads((tmp_path / "report.json").read_text())
    assert len(data["times"]) == len(report.times)
    text = (tmp_path / "report.md").read_text()
    assert "All is right" in text
    assert "compute-sanitizer --tool racecheck python -m dmao_kernels.testing.selftest" in text
    assert said[-1].endswith("report.md")


@pytest.fixture
def wrong_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dmao_kernels.dropout_add

    def wrong(x: Tensor, y: Tensor, **options: object) -> Tensor:
        return right(x, y, **options) + 1e-3  # type: ignore[arg-type]

    monkeypatch.setattr(dmao_kernels, "dropout_add", wrong)


def test_what_is_wrong_is_told_and_has_no_times(
    tmp_path: Path, wrong_residual: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "MAKERS", (speed._residual, speed._importance))
    report = selftest("cpu", tmp_path, quick=True, only=("speed",), say=lambda line: None)
    assert {check.op for check in report.checks if check.problem} == {"dropout_add"}
    assert "output: largest error" in report.wrong[0]
    times = {time.op: time for time in report.times}
    assert times["dropout_add"].microseconds == {}
    assert times["dropout_add"].problem == "not timed: it is wrong, or was not checked"
    assert times["importance_"].microseconds
    text = (tmp_path / "report.md").read_text()
    assert "Something is wrong" in text
    assert "(x " not in next(line for line in text.splitlines() if line.startswith("| dropout_add | training"))


def test_what_changes_from_call_to_call_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dmao_kernels.masked_linear
    monkeypatch.setattr(dmao_kernels, "masked_linear", lambda *args, **named: right(*args, **named) * _unsteady())
    found = [check for check in numerics.checks("cpu", (torch.float32,)) if check.op == "masked_linear"]
    assert all("output differs from call to call" in check.problem for check in found)


def _unsteady() -> Tensor:
    return 1 + 1e-6 * torch.rand(())


def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    said: list[str] = []
    report = selftest("cpu", tmp_path, quick=True, only=("numerics", "speed"), seconds=0.0, say=said.append)
    assert len(report.checks) == 1
    assert report.times == []
    assert "importance float32" in report.missing
    assert "checks after component_ffn bfloat16" in report.missing
    assert said[-2].startswith("Not run for lack of time: checks after component_ffn bfloat16, ")
    text = (tmp_path / "report.md").read_text()
    assert "All that was run is right" in text
    assert said[-2] in text


def test_command_line(tmp_path: Path, run_python: Callable[..., object]) -> None:
    run = run_python(
        *("-m", "dmao_kernels.testing.selftest", "--device", "cpu", "--quick", "--only", "training"),
        *("--out", str(tmp_path)),
    )
    assert run.returncode == 0, run.stderr  # type: ignore[attr-defined]
    assert "training in slots storage: right" in run.stdout  # type: ignore[attr-defined]


def test_the_faster_backend_by_all_its_problems() -> None:
    times = [
        Time("a", "1", "bfloat16", {"ours": 2.0, "triton": 2.0, "cuda": 1.0}),
        Time("a", "2", "bfloat16", {"ours": 2.0, "triton": 2.0, "cuda": 3.0}),
        Time("b", "1", "bfloat16", {"ours": 2.0, "triton": 2.0, "cuda": 3.0}),
        Time("c", "1", "bfloat16", {"ours": 2.0, "eager": 3.0}),
        Time("d", "1", "bfloat16", problem="not timed"),
    ]
    assert _faster(times) == {"a": "cuda", "b": "triton"}
