"""The framework of the benchmarks: rows, break-even, comparison, and that every module registers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import compare, roofline
from benchmarks._harness import Timing
from benchmarks._oracle import check
from benchmarks._oracle import run as timed
from benchmarks.registry import Case, Problem, cases
from benchmarks.report import Measured, Report, break_even, markdown, not_measured
from benchmarks.roofline import Limits

LIMITS = Limits(float32=100.0, bfloat16=200.0, read=10.0, copy=8.0, update=20.0)


def nothing() -> None:
    pass


def make_case(**changes: Any) -> tuple[Case, Problem]:
    problem = Problem({"ours": nothing, "eager": nothing}, nothing, flops=50.0, absent={"other": "not installed"})
    return Case("op", "small", lambda: problem, targets={"eager": 0.5, "limit": 1.5}, **changes), problem


def test_rows_have_ratio_target_and_share_of_the_limit() -> None:
    case, problem = make_case()
    times = {"ours": Timing(1.0, 0.01), "eager": Timing(4.0, 0.02)}
    rows = {row["peer"]: row for row in Measured.of(case, 2, problem, times).rows(LIMITS)}
    assert set(rows) == {"eager", "limit", "other"}
    assert rows["eager"]["case"] == "op small fp32 T2"
    assert rows["eager"]["ratio"] == 0.25
    assert rows["eager"]["met"] is True
    assert rows["limit"]["ratio"] == 2.0
    assert rows["limit"]["met"] is False
    assert rows["other"]["ratio"] is None
    assert rows["other"]["note"] == "not installed"
    assert {row["limit_share"] for row in rows.values()} == {0.5}


def test_no_ratio_behind_a_red_gate() -> None:
    case, problem = make_case()
    rows = Measured.of(case, 1, problem, gate="red: too far off").rows(LIMITS)
    assert rows
    assert all(row["ratio"] is None and row["ours_ms"] is None for row in rows)
    assert {row["peer"]: row["met"] for row in rows} == {"eager": False, "limit": False, "other": None}
    assert "red: too far off" in markdown(report(rows), [])


def test_a_red_gate_meets_no_target(tmp_path: Path) -> None:
    red = [{**row, "case": "op large fp32 T1"} for row in run(1.0, "red: too far off")]
    report([*run(0.25), *red]).write(tmp_path)
    assert "Targets met: 2 of 4." in (tmp_path / "latest.md").read_text()
    shown = (tmp_path / "targets.svg").read_text()
    assert "op small" in shown
    assert "op large" not in shown, "there is no ratio to plot"


def test_a_peer_that_cannot_run_has_nothing_to_miss() -> None:
    problem = Problem({"ours": nothing, "eager": nothing}, nothing, absent={"other": "not installed"})
    case = Case("op", "small", lambda: problem, targets={"other": 0.5})
    assert {row["met"] for row in Measured.of(case, 1, problem, gate="red: too far off").rows(LIMITS)} == {None}


def test_the_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    assert LIMITS.floor(torch.float32, 50.0, 1.0) == 0.5
    assert LIMITS.floor(torch.bfloat16, 50.0, 10.0) == 0.5
    assert LIMITS.floor(torch.bfloat16, 50.0, 10.0, reads_only=True) == 1.0


def test_the_highest_limits_count() -> None:
    slow = Limits(float32=50.0, bfloat16=300.0, read=10.0, copy=9.0, update=1.0)
    assert LIMITS.or_higher(slow) == Limits(100.0, 300.0, 10.0, 9.0, 20.0)


def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "TRIES", 1)
    found, again = roofline.measure(torch.get_num_threads()), roofline.measure(torch.get_num_threads())
    assert min(vars(found).values()) > 0
    assert again.or_higher(found) == again == roofline.limits(torch.get_num_threads())


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.1, 0.2), (0.5, 0.8), (0.7, 1.2)], "60%"),
        ([(0.1, 1.2), (0.5, 2.0)], "below 10%"),
        ([(0.5, 0.9), (0.1, 0.3)], "all measured, up to 50%"),
    ],
)
def test_break_even(points: list[tuple[float, float]], expected: str) -> None:
    common = {"series": "s", "peer": "eager", "threads": 1}
    assert break_even([{**common, "density": density, "ratio": ratio} for density, ratio in points]) == [
        ("s", "eager", 1, expected)
    ]


def report(rows: list[dict[str, Any]], **changes: Any) -> Report:
    conditions = {"machine": "m", "cores": 2, "capability": "c", "date": "d", "commit": "c", "run": "full"}
    return Report({**conditions, "python": "3", "packages": {}, "limits": {}, **changes}, rows)


def run(ours: float, gate: str = "green") -> list[dict[str, Any]]:
    case, problem = make_case()
    times = {"ours": Timing(ours, 0.01), "eager": Timing(1.0, 0.01)} if gate == "green" else None
    return Measured.of(case, 1, problem, times, gate=gate).rows(LIMITS)


def test_compare_flags_what_got_slower_wrong_or_lost(tmp_path: Path) -> None:
    old = report(run(1.0))
    assert compare.regressions(old, report(run(1.05))) == []
    assert len(compare.regressions(old, report(run(1.2)))) == 2  # against eager and against the limit
    assert "the gate is red" in compare.regressions(old, report(run(1.0, "red")))[0]
    assert len(compare.regressions(old, report([]))) == 3
    assert compare.regressions(old, report([], run="quick")) == []
    paths = [tmp_path / name for name in ("old.json", "new.json")]
    for path, made in zip(paths, (old, report(run(1.2))), strict=True):
        path.write_text(json.dumps({"conditions": made.conditions, "rows": made.rows}))
    assert compare.main([str(path) for path in paths]) == 1
    assert compare.main([str(paths[0]), str(paths[0])]) == 0


def test_compare_flags_lost_peers_and_new_cases_with_a_red_gate() -> None:
    old = report(run(1.0))
    lost = [{**row, "ratio": None, "note": "gone"} if row["peer"] == "eager" else row for row in run(1.0)]
    assert compare.regressions(old, report(lost)) == ["op small fp32 T1 / eager: no longer measured (gone)"]
    assert compare.regressions(report(lost), old) == []
    red = [{**row, "case": "op large fp32 T1"} for row in run(1.0, "red: too far off")]
    found = compare.regressions(old, report([*run(1.0), *red]))
    assert found[0] == "op large fp32 T1 / eager: new, the gate is red: too far off"
    assert len(found) == len(red)
    assert compare.regressions(report(red), report([*run(1.0), *red])) == []


def test_a_report_is_written_and_read_again(tmp_path: Path) -> None:
    made = report(run(1.0))
    assert [path.name for path in made.write(tmp_path)] == ["latest.json", "latest.md", "targets.svg"]
    assert Report.read(tmp_path / "latest.json") == made
    assert "Targets met: 0 of 2" in (tmp_path / "latest.md").read_text()


def test_a_report_names_what_was_not_measured() -> None:
    labels = [case.label(threads) for case in cases() for threads in case.threads]
    rows = [{"case": label} for label in labels[2:]]
    assert not_measured(rows) == labels[:2]
    assert f"\nNot measured: {labels[0]}; {labels[1]}.\n" in markdown(report(run(1.0)), [], labels[:2])
    assert "Not measured" not in markdown(report(run(1.0)), [])


def test_cases_that_were_run_again_replace_the_first() -> None:
    first = run(1.0, "red: too far off")
    other = [{**row, "case": "op large fp32 T1"} for row in run(1.0)]
    merged = report([*first, *other]).with_later(report(run(0.25), date="later", commit="fix"))
    assert [row["case"] for row in merged.rows] == ["op small fp32 T1"] * 3 + ["op large fp32 T1"] * 3
    assert {row["gate"] for row in merged.rows} == {"green"}
    assert merged.rows[0]["ratio"] == 0.25
    assert "Run again, later, commit fix: op small fp32 T1." in markdown(merged, [])
    with pytest.raises(ValueError, match="has no case 'op large fp32 T1'"):
        report(first).with_later(report(other))


@pytest.mark.parametrize(
    "other", [{"machine": "n"}, {"cores": 64}, {"capability": "avx512"}, {"run": "quick"}, {"packages": {"torch": "3"}}]
)
def test_cases_run_under_other_conditions_are_not_merged(other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(ValueError, match=f"{name} of the first run"):
        report(run(1.0)).with_later(report(run(1.0), **other))


def test_cases_are_registered() -> None:
    found = cases()
    assert {"component_ffn", "importance_"} <= {case.op for case in found}
    quick = {case.op for case in found if case.quick}
    assert quick == {case.op for case in found}, "every operation has a quick case"


def test_a_gate_sees_wrong_results_and_wrong_gradients() -> None:
    x = torch.linspace(-2, 2, 33).requires_grad_()
    grad = torch.ones(33)
    check(torch.sin, torch.sin, x, grad=grad)
    with pytest.raises(AssertionError, match="output"):
        check(lambda x: 1.001 * torch.sin(x), torch.sin, x, grad=grad)
    with pytest.raises(AssertionError, match="gradient 0"):
        check(lambda x: torch.sin(x.detach()) + 0 * x, torch.sin, x, grad=grad)


def test_what_is_timed_is_forward_alone_or_with_all_gradients() -> None:
    x, y = torch.linspace(-2, 2, 33).requires_grad_(), torch.ones(33)
    forward, both = (timed(torch.mul, [x, y], 2 * y, backward) for backward in (False, True))
    assert torch.equal(forward(), x)
    assert not forward().requires_grad
    (gradient,) = both()
    assert torch.equal(gradient, 2 * y)


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    older = report(run(1.0), limits={"1": {"float32": 1.0, "bfloat16": 1.0, "read": 1.0, "copy": 1.0}})
    path = tmp_path / "older.json"
    path.write_text(json.dumps({"conditions": older.conditions, "rows": older.rows}))
    with pytest.raises(ValueError, match=r"older.json was written by another version: its limits must be \["):
        Report.read(path)
