"""Rows of the table that `make test-aot` prints and keeps in build/aot.md, and --write-budgets.

Triton compiles where nothing interprets: not in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what 3.9 does, and warns of; 3.10 asks for a choice

from dmao_kernels.testing.sass import Code
from tests.aot import budgets

BUILD = Path(__file__).resolve().parents[2] / "build"
ROWS = BUILD / "aot"
COLUMNS = (
    *("GPU", "dtype", "problem", "kernel", "registers", "stack", "local", "shared", "warps", "blocks", "limit"),
    *("matrix", "asynchronous", "instructions per matrix", "flops per byte"),
)

BESIDE = (
    *("GPU", "problem", "kernel", "peer", "tile, warps, stages", "blocks", "flops per byte"),
    *("blocks of the peer", "flops per byte of the peer", "why ours is behind"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-budgets", action="store_true", help="replaces the budgets of what runs, for review")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(ROWS, ignore_errors=True)
        ROWS.mkdir(parents=True)


@pytest.fixture
def record():
    """record(arch, dtype, problem, codes) keeps rows of the table; peers have a budget as little as a name of ours."""

    def keep(arch: int | str, dtype: str, problem: str, codes: dict[str, Code]) -> None:
        rows = [{"arch": arch, "dtype": dtype, "problem": problem, "kernel": k, **_plain(c)} for k, c in codes.items()]
        (ROWS / f"{arch} {dtype} {problem}.json").write_text(json.dumps(rows))

    return keep


@pytest.fixture
def record_peer():
    """record_peer(arch, problem, kernel, peer, tile, ours, theirs, why) keeps a row of the table of equal tiles."""

    def keep(
        arch: int, problem: str, kernel: str, peer: str, tile: tuple[int, ...], ours: Code, theirs: Code, why: str
    ) -> None:
        cells = [str(arch), problem, kernel, peer, "x".join(map(str, tile))]
        for code in (ours, theirs):
            cells += [str(code.blocks), _number(code.loop.flops_per_byte)]
        line = "| " + " | ".join([*cells, why]) + " |"
        with (ROWS / f"{arch} {problem}.beside").open("a") as file:
            file.write(line + "\n")

    return keep


def _plain(code: Code) -> dict[str, Any]:
    loop = {"per_matrix": code.loop.per_matrix, "flops_per_byte": code.loop.flops_per_byte}
    return {**{field.name: getattr(code, field.name) for field in dataclasses.fields(code)}, "loop": None, **loop}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = [row for path in sorted(ROWS.glob("*.json")) for row in json.loads(path.read_text())]
    beside = sorted({line for path in ROWS.glob("*.beside") for line in path.read_text().splitlines()})
    if not rows and not beside:
        return
    if config.getoption("--write-budgets"):
        budgets.write(rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    lines += ["", "Beside peers with the same tile, warps and stages:", ""]
    lines += ["| " + " | ".join(BESIDE) + " |", "|" + "---|" * len(BESIDE), *beside]
    (BUILD / "aot.md").write_text(
        "\n".join(["# Compiled Triton kernels", "", "Made by `make test-aot`.", "", *lines, ""])
    )
    terminalreporter.write_line("")
    for line in lines:
        terminalreporter.write_line(line)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _cells(row: dict[str, Any]) -> list[str]:
    names = ("arch", "dtype", "problem", "kernel", "registers", "stack", "local", "shared", "warps", "blocks", "limit")
    matrix = " ".join(f"{count} {kind}" for kind, count in Counter(row["matrix"]).items())
    cells = ["" if row[name] is None else str(row[name]) for name in names]
    return [*cells, matrix, str(row["asynchronous"]), _number(row["per_matrix"]), _number(row["flops_per_byte"])]
