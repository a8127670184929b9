"""What was found, as data and as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import dmao_kernels
from dmao_kernels import info
from dmao_kernels.testing.selftest.numerics import Check
from dmao_kernels.testing.selftest.training import Run

SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Time:
    """One problem: microseconds by candidate, ours first, of the device and, on a GPU, of the host that queues it.

    absent: peers that could not run, and why.  share: of what the machine can do at most.  problem: why there are no
    times, or "".
    """

    op: str
    name: str
    dtype: str
    microseconds: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    share: float = 0.0
    problem: str = ""

    def cells(self) -> list[str]:
        """Ours, its share of the limit, the peers, and what the host takes; or the problem."""
        if self.problem:
            return ["", "", self.problem, ""]
        ours, *_ = self.microseconds.values()
        peers = [f"{name} {value:.0f} (x {ours / value:.2f})" for name, value in list(self.microseconds.items())[1:]]
        others = ", ".join([*peers, *(f"no {name}" for name in self.absent)])
        host = ", ".join(f"{name} {value:.0f}" for name, value in self.host.items())
        return [f"{ours:.0f}", f"{self.share:.0%}", others, host]

    def line(self) -> str:
        """For a terminal."""
        return f"{self.op} {self.name} {self.dtype}: {'  '.join(self.cells())}"


@dataclass
class Report:
    """All results. missing: what was not run for lack of time."""

    machine: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    trainings: list[Run] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    times: list[Time] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """What is not as it has to be, in words."""
        wrong = [f"{c.op} ({c.name}, {c.dtype}, {c.backend}): {c.problem}" for c in self.checks if c.problem]
        return wrong + [f"training in {run.storage} storage: {run.problem}" for run in self.trainings if run.problem]

    @property
    def not_run(self) -> str:
        """`missing` in one line; "" where all was run."""
        return f"Not run for lack of time: {', '.join(self.missing)}" if self.missing else ""

    def write(self, folder: Path) -> None:
        """report.json and report.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / "report.md").write_text(self.text())

    def text(self) -> str:
        """In Markdown."""
        lines = ["# dmao selftest", "", *(f"- {key}: {value}" for key, value in self.machine.items()), ""]
        done = f"{len(self.checks)} checks and {len(self.trainings)} trainings, {len(self.wrong)} of them failed"
        right = "All that was run is right" if self.missing else "All is right"
        lines += [f"**{'Something is wrong' if self.wrong else right}**: {done}.", ""]
        lines += [*(f"- {problem}" for problem in self.wrong), ""]
        if self.missing:
            lines += [f"{self.not_run}.", ""]
        lines += ["## Checks against float64", "", "| operation | case | dtype | backend | |", "|---|---|---|---|---|"]
        lines += [f"| {c.op} | {c.name} | {c.dtype} | {c.backend} | {c.problem or 'right'} |" for c in self.checks]
        lines += ["", "## Training with an event", ""]
        lines += [f"- {run.storage}: {run.problem or _course(run)}" for run in self.trainings]
        lines += ["", "## Times", "", "Medians in microseconds; a ratio is time of ours / time of the peer.", ""]
        lines += [f"- measured limit, {name}: {value:.3g}" for name, value in self.limits.items()]
        lines += [
            "",
            "| operation | case | dtype | ours | share of the limit | peers | host |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [f"| {time.op} | {time.name} | {time.dtype} | {' | '.join(time.cells())} |" for time in self.times]
        lines += [
            "",
            *(f"- {t.op} {t.name} {t.dtype}: no {n}: {why}" for t in self.times for n, why in t.absent.items()),
        ]
        return "\n".join([*lines, "", "## More checks, on an NVIDIA GPU", "", *_sanitizers(), ""])


def _course(run: Run) -> str:
    return f"loss {run.losses[0]:.4f} to {run.losses[-1]:.4f}; components {', '.join(map(str, run.widths.values()))}"


def _sanitizers() -> list[str]:
    command = "python -m dmao_kernels.testing.selftest --device cuda --quick --only numerics --out sanitized"
    return [f"    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool {tool} {command}" for tool in SANITIZERS]


def machine(device: str) -> dict[str, str]:
    """What all of this ran on."""
    found = {"device": device, "native kernels": str(dmao_kernels.cpu_capability()), **info.versions()}
    index = torch.device(device)
    return {**found, "GPU": info.gpu(index.index or 0)} if index.type == "cuda" else found
