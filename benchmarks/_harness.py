"""Interleaved timing: all candidates in one process, in turns, so that a disturbance meets each of them."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dmao_kernels import cpu_capability


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, and the median absolute deviation as a share of it."""

    median: float
    spread: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        median = statistics.median(samples)
        return cls(median, statistics.median(abs(value - median) for value in samples) / median)

    def __str__(self) -> str:
        return f"{1e3 * self.median:8.2f} ms +-{100 * self.spread:2.0f}%"


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float = 1.5) -> dict[str, Timing]:
    """Times every candidate in turns, for about `seconds` in all and at least 5 rounds."""
    for call in candidates.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: Timing.of(values) for name, values in samples.items()}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seconds", type=float, default=1.5, help="per comparison")
    made.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the results")
    return made


def conditions() -> dict[str, Any]:
    """What the figures depend on, apart from the machine."""
    return {
        "date": date.today().isoformat(),
        "capability": cpu_capability(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def write_results(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows, which have the same keys, and their conditions to FOLDER/NAME.json and FOLDER/NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    found = conditions()
    (folder / f"{name}.json").write_text(json.dumps({"conditions": found, "rows": rows}, indent=2) + "\n")
    columns = list(rows[0]) if rows else []
    table = [columns, ["---"] * len(columns), *([_cell(value) for value in row.values()] for row in rows)]
    lines = [f"# {name}", "", ", ".join(f"{key} {value}" for key, value in found.items()), ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in table]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    print(f"results: {folder / name}.json, {folder / name}.md")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
