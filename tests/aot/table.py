"""The table of what compilers made of kernels: rows that tests keep, in any process, and one Markdown file of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmao_kernels.testing.sass import Code
from tests.aot import budgets

BUILD = Path(__file__).resolve().parents[2] / "build"
COLUMNS = (
    *("GPU", "dtype", "problem", "kernel", "registers", "stack", "local", "shared", "warps", "blocks", "limit"),
    *("matrix", "asynchronous", "narrow", "instructions per matrix", "flops per byte"),
)
BESIDE = (
    *("GPU", "problem", "kernel", "peer", "tile, warps, stages", "blocks", "flops per byte"),
    *("blocks of the peer", "flops per byte of the peer", "why ours is behind"),
)


@dataclass(frozen=True)
class Table:
    """build/<name>.md, made by a command, and the budgets of its kernels."""

    name: str
    title: str
    command: str
    budgets: Path

    @property
    def rows(self) -> Path:
        """The folder of what tests have kept."""
        return BUILD / self.name

    def begin(self, config: pytest.Config) -> None:
        """Forgets the rows of earlier runs."""
        if not hasattr(config, "workerinput"):
            shutil.rmtree(self.rows, ignore_errors=True)
            self.rows.mkdir(parents=True)

    def keep(self, arch: int | str, dtype: str, problem: str, codes: dict[str, Code]) -> None:
        """Rows of one problem; peers have a budget as little as a name of ours."""
        rows = [{"arch": arch, "dtype": dtype, "problem": problem, "kernel": k, **_plain(c)} for k, c in codes.items()]
        (self.rows / f"{arch} {dtype} {problem}.json").write_text(json.dumps(rows))

    def keep_peer(
        self, arch: int, problem: str, kernel: str, peer: str, tile: tuple[int, ...], ours: Code, theirs: Code, why: str
    ) -> None:
        """A row that compares a kernel with a peer of the same tile, warps and stages; why: in what it is behind."""
        cells = [str(arch), problem, kernel, peer, "x".join(map(str, tile))]
        for code in (ours, theirs):
            cells += ["" if code.blocks is None else str(code.blocks), _number(code.loop.flops_per_byte)]
        with (self.rows / f"{arch} {problem}.beside").open("a") as file:
            file.write(_line([*cells, why]) + "\n")

    def end(self, reporter: Any, write_budgets: bool) -> None:
        """Prints the table and keeps it; with write_budgets what is in it becomes the budgets."""
        rows = [row for path in sorted(self.rows.glob("*.json")) for row in json.loads(path.read_text())]
        beside = sorted({line for path in self.rows.glob("*.beside") for line in path.read_text().splitlines()})
        if not rows and not beside:
            return
        if write_budgets:
            budgets.write(rows, self.budgets)
        lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS), *(_line(_cells(row)) for row in rows)]
        if beside:
            lines += ["", "Beside peers of the same tile, warps and stages:", ""]
            lines += [_line(BESIDE), "|" + "---|" * len(BESIDE), *beside]
        text = [f"# {self.title}", "", f"Made by `{self.command}`.", "", *lines, ""]
        self.rows.with_suffix(".md").write_text("\n".join(text))
        reporter.write_line("")
        for line in lines:
            reporter.write_line(line)


def _plain(code: Code) -> dict[str, Any]:
    loop = {"per_matrix": code.loop.per_matrix, "flops_per_byte": code.loop.flops_per_byte}
    return {**{field.name: getattr(code, field.name) for field in dataclasses.fields(code)}, "loop": None, **loop}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _cells(row: dict[str, Any]) -> list[str]:
    names = ("arch", "dtype", "problem", "kernel", "registers", "stack", "local", "shared", "warps", "blocks", "limit")
    matrix = " ".join(f"{count} {kind}" for kind, count in Counter(row["matrix"]).items())
    cells = ["" if row[name] is None else str(row[name]) for name in names]
    more = [str(row["asynchronous"]), str(row["narrow"])]
    return [*cells, matrix, *more, _number(row["per_matrix"]), _number(row["flops_per_byte"])]
