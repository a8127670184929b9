"""Results of a run: rows, their conditions, and what is made of them: JSON, Markdown, plots, docs/PERFORMANCE.md.

python -m benchmarks.report benchmarks/results/latest.json     # writes docs/PERFORMANCE.md and its plots
python -m benchmarks.report latest.json again.json             # the same, with cases that were run again later
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks._harness import Timing
from benchmarks.registry import LIMIT, OURS, Case, Problem, cases
from benchmarks.roofline import Limits
from dmao_kernels import cpu_capability
from dmao_kernels.info import processor

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dmao-kernels", "torch", "numpy", "scipy", "torch-pruning", "pytest-benchmark")
HEADER = ("machine", "cores", "capability", "run", "python", "packages")  # what a report says once, of all its rows
COLUMNS = ("case", "peer", "ours ms", "peer ms", "ratio", "target", "met", "limit share", "gate")


@dataclass(frozen=True)
class Measured:
    """What a case has given on so many threads; without times behind a red gate."""

    case: Case
    threads: int
    peers: tuple[str, ...]
    flops: float
    bytes: float
    reads_only: bool
    absent: Mapping[str, str]
    times: Mapping[str, Timing]
    gate: str

    @classmethod
    def of(
        cls,
        case: Case,
        threads: int,
        problem: Problem,
        times: Mapping[str, Timing] | None = None,
        gate: str = "green",
    ) -> Measured:
        """Without the tensors of the problem."""
        peers = tuple(name for name in problem.candidates if name != OURS)
        facts = problem.flops, problem.bytes, problem.reads_only, problem.absent
        return cls(case, threads, peers, *facts, times or {}, gate)

    def rows(self, limits: Limits | None = None) -> list[dict[str, Any]]:
        """One row per peer; without times (red gate) or for an absent peer there is no ratio."""
        case, times, gate = self.case, self.times, self.gate
        ours = times.get(OURS)
        floor = limits.floor(case.dtype, self.flops, self.bytes, self.reads_only) if limits else 0.0
        common = {
            "case": case.label(self.threads),
            "op": case.op,
            "threads": self.threads,
            "series": case.series,
            "density": case.density,
            "gate": gate,
            "ours_ms": 1e3 * ours.median if ours else None,
            "ours_spread": ours.spread if ours else None,
            "limit_share": floor / ours.median if ours and floor else None,
        }
        peers: dict[str, Timing | None] = {name: times.get(name) for name in self.peers}
        peers = {name: timing for name, timing in peers.items() if timing or not times}  # else: left out of a quick run
        if LIMIT in case.targets or not peers:
            peers[LIMIT] = Timing(floor, 0.0) if floor else None
        rows = []
        for peer, timing in [*peers.items(), *((name, None) for name in self.absent)]:
            ratio = ours.median / timing.median if ours and timing else None
            target, met = case.targets.get(peer), None
            if target is not None and ratio is not None:
                met = ratio <= target
            elif target is not None and gate != "green" and peer not in self.absent:
                met = False
            rows.append(
                {
                    **common,
                    "peer": peer,
                    "peer_ms": 1e3 * timing.median if timing else None,
                    "peer_spread": timing.spread if timing else None,
                    "ratio": ratio,
                    "target": target,
                    "met": met,
                    "note": self.absent.get(peer, ""),
                }
            )
        return rows


def conditions(limits: Mapping[int, Limits], quick: bool) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": _commit(),
        "run": "quick" if quick else "full",
        "machine": processor(),
        "system": platform.system() + " " + platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "capability": cpu_capability(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "limits": {str(threads): asdict(found) for threads, found in limits.items()},
    }


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@dataclass
class Report:
    conditions: dict[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Report:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Limits)}
        if any(limits.keys() != names for limits in found["conditions"]["limits"].values()):
            raise ValueError(f"report: {path} was written by another version: its limits must be {sorted(names)}")
        return cls(found["conditions"], found["rows"])

    def with_later(self, later: Report) -> Report:
        """This run, with the cases of a later one in place of its own; the conditions name them.

        Raises ValueError for a run under other conditions, and for one with other cases.
        """
        for name in HEADER:
            first, other = self.conditions[name], later.conditions[name]
            if first != other:
                raise ValueError(f"report: {name} of the first run is {first!r}, of a later one {other!r}")
        again: dict[str, list[dict[str, Any]]] = {}
        for row in later.rows:
            again.setdefault(row["case"], []).append(row)
        rows: list[dict[str, Any]] = []
        for case, own in itertools.groupby(self.rows, key=lambda row: row["case"]):
            rows += again.get(case) or own
        if unknown := again.keys() - {row["case"] for row in self.rows}:
            raise ValueError(f"report: the first run has no case {sorted(unknown)[0]!r}")
        run = {"date": later.conditions["date"], "commit": later.conditions["commit"], "cases": list(again)}
        return Report({**self.conditions, "again": [*self.conditions.get("again", []), run]}, rows)

    def write(self, folder: Path) -> list[Path]:
        """FOLDER/latest.json, .md and the plots; returns their paths."""
        from benchmarks.plots import write_plots

        folder.mkdir(parents=True, exist_ok=True)
        data, text = folder / "latest.json", folder / "latest.md"
        data.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        plots = write_plots(self.rows, folder)
        text.write_text(markdown(self, [plot.name for plot in plots]), encoding="utf-8")
        return [data, text, *plots]


def break_even(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, str]]:
    """(series, peer, threads, density up to which ours is ahead), interpolated between measured densities."""
    curves: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row in rows:
        if row["series"] and row["density"] is not None and row["ratio"] is not None:
            key = (row["series"], row["peer"], row["threads"])
            curves.setdefault(key, []).append((row["density"], row["ratio"]))
    return [(*key, _crossing(sorted(points))) for key, points in curves.items() if len(points) > 1]


def _crossing(points: Sequence[tuple[float, float]]) -> str:
    """Where the ratio, seen from low densities, first exceeds 1."""
    if points[0][1] > 1:
        return f"below {points[0][0]:.0%}"
    for (left, low), (right, high) in itertools.pairwise(points):
        if high > 1:
            return f"{left + (right - left) * (1 - low) / (high - low):.0%}"
    return f"all measured, up to {points[-1][0]:.0%}"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(row) for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def milliseconds(who: str) -> str:
        value = row[f"{who}_ms"]
        return "" if value is None else f"{value:.3g} ±{100 * row[f'{who}_spread']:.0f} %"

    def number(name: str) -> str:
        return "" if row[name] is None else f"{row[name]:.3f}"

    share = "" if row["limit_share"] is None else f"{row['limit_share']:.0%}"
    met = {None: "", True: "yes", False: "**no**"}[row["met"]]
    ratio = f"not run: {row['note']}" if row["note"] else number("ratio")
    times = milliseconds("ours"), milliseconds("peer")
    return row["case"], row["peer"], *times, ratio, number("target"), met, share, row["gate"]


def not_measured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The registered cases that have no row, for a run that was stopped or of some cases only."""
    labels = (case.label(threads) for case in cases() for threads in case.threads)
    measured = {row["case"] for row in rows}
    return [label for label in labels if label not in measured]


def markdown(report: Report, plots: Sequence[str], missing: Sequence[str] = ()) -> str:
    """The whole document. missing: cases that it lacks."""
    found = report.conditions
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    lines = [
        "# Performance",
        "",
        f"{found['machine']}, {found['cores']} cores, kernels for {found['capability']}; {found['date']}, commit "
        f"{found['commit']}, {found['run']} run; Python {found['python']}, {packages}.",
        *(
            f"Run again, {again['date']}, commit {again['commit']}: {'; '.join(again['cases'])}."
            for again in found.get("again", [])
        ),
        *([f"Not measured: {'; '.join(missing)}."] if missing else []),
        "",
        "Measured by `make bench`, written by `python -m benchmarks.report`; nothing here is typed by hand. T1 and",
        "T2: with one and two threads. A ratio is time of ours / time of the peer: medians of rounds in which all",
        "candidates ran in turns in one process, on random data, after ours had passed the comparison with float64",
        "(gate). ± is the median absolute deviation. The limit share is the floor on time (flops at the arithmetic",
        "peak or bytes at memory bandwidth, whichever takes longer) as a share of ours' time; above 100 % the data",
        "are in the cache, or the machine was faster than whenever its limits were measured. The peer `limit` is",
        "that floor. The bandwidth is the highest of those below, for what reads alone that of reading; a copy",
        "into other memory cannot reach it.",
        "",
        "## Limits of the machine, measured in the same run",
        "",
        "Read, copied and updated in place; what is read and what is written both count.",
        "",
        "| threads | fp32 GF/s | bf16 GF/s | read GB/s | copy GB/s | update GB/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for threads, limit in found["limits"].items():
        values = (limit[name] / 1e9 for name in ("float32", "bfloat16", "read", "copy", "update"))
        lines.append(f"| {threads} | " + " | ".join(f"{value:.0f}" for value in values) + " |")
    judged = [row for row in report.rows if row["met"] is not None]
    missed = [row for row in judged if not row["met"]]
    lines += ["", f"Targets met: {len(judged) - len(missed)} of {len(judged)}.", ""]
    lines += [f"![{Path(plot).stem}]({plot})" for plot in plots]
    lines += ["", "## All rows", "", *table(report.rows)]
    crossings = break_even(report.rows)
    if crossings:
        lines += ["", "## Break-even", "", "Density up to which ours is faster than the peer.", ""]
        lines += ["| series | peer | threads | density |", "| --- | --- | --- | --- |"]
        lines += [f"| {series} | {peer} | {threads} | {where} |" for series, peer, threads, where in crossings]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "benchmarks/results/latest.json")
    parser.add_argument("later", type=Path, nargs="*", help="results of runs of some cases, which replace the first's")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of PERFORMANCE.md")
    arguments = parser.parse_args()
    from benchmarks.plots import write_plots

    report = Report.read(arguments.results)
    for path in arguments.later:
        report = report.with_later(Report.read(path))
    plots = write_plots(report.rows, arguments.docs / "performance")
    names = [f"performance/{plot.name}" for plot in plots]
    (arguments.docs / "PERFORMANCE.md").write_text(markdown(report, names, not_measured(report.rows)), encoding="utf-8")
    print(f"written: {arguments.docs / 'PERFORMANCE.md'}")


if __name__ == "__main__":
    main()
