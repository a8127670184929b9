"""Options of the benchmarks, the cases as parameters, and the results at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.registry import cases
from benchmarks.report import Measured, Report, conditions, table
from benchmarks.roofline import limits

_MEASURED = pytest.StashKey[list[Measured]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dmao benchmarks")
    group.addoption("--quick", action="store_true", help="only the quick cases, for less time each")
    group.addoption("--seconds", type=float, default=1.0, help="of timing per case and number of threads")
    group.addoption("--threads", default="1,2", help="numbers of threads, separated by commas")
    folder = Path(__file__).parent / "results"
    group.addoption("--results", type=Path, default=folder, help="folder of the results")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    option = metafunc.config.option
    wanted = {int(threads) for threads in option.threads.split(",")}
    possible = {threads for threads in wanted if threads <= (os.cpu_count() or 1)}
    chosen = [
        pytest.param(case, threads, id=case.label(threads))
        for case in cases()
        if case.quick or not option.quick
        for threads in case.threads
        if threads in possible
    ]
    metafunc.parametrize(("case", "threads"), chosen)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> list[Measured]:
    """What this session has measured so far."""
    return request.config.stash[_MEASURED]


def pytest_benchmark_group_stats(config: pytest.Config, benchmarks: Sequence[Any], group_by: str) -> list[Any]:
    """No table of pytest-benchmark: ours stands below and has the peers too."""
    return []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    measured = config.stash[_MEASURED]
    if not measured:
        return
    highest = {threads: limits(threads) for threads in sorted({it.threads for it in measured if it.times})}
    rows = [row for it in measured for row in it.rows(highest.get(it.threads))]
    report = Report(conditions(highest, config.option.quick), rows)
    terminalreporter.write_line("")
    terminalreporter.write_line("\n".join(table(report.rows)))
    written = report.write(config.option.results)
    terminalreporter.write_line(f"results: {', '.join(str(path) for path in written)}")
