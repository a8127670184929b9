"""The figures of the demo: both arms on the held-out set, their step times, and what grow-and-drop costs."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dmao.checkpoint import list_checkpoints, load
from dmao.config import TrainConfig, load_config
from dmao.errors import UserError
from dmao.files import write_atomically
from dmao.metrics import read_json_lines
from dmao_kernels.info import processor

SPLIT = "test"
EVENT_KEYS = ("step", "dropped", "grown", "removed", "added", "unit", "parameters_before", "parameters", "seconds")


def summarize(run_dir: Path, pairs: int = 40) -> dict[str, Any]:
    """Measure both trained arms in ``run_dir`` and put their results together.

    Step times are measured here, alternating on the same batches, because while the arms train side by side
    they share the machine; so is the overhead (``dmao.overhead``), in ``pairs`` pairs of steps.
    """
    from dmao.overhead import measure_overhead, step_times

    arms = {name: run_dir / name for name in ("baseline", "dmao")}
    times = step_times(arms, pairs=pairs)
    overhead = measure_overhead(load_config(arms["dmao"] / "config.yaml"), pairs=pairs)
    summary: dict[str, Any] = {name: _results(folder) for name, folder in arms.items()}
    for name, median in times.items():
        summary[name] |= {"step_ms": median.median, "step_ms_interval": [median.low, median.high]}
    summary["dmao"] |= _structure(arms["dmao"])
    costs = overhead.to_dict()
    summary["overhead"] = {name: cost["median"] for name, cost in costs.items() if name.endswith("_pct")}
    summary["overhead"]["intervals"] = {name: [cost["low"], cost["high"]] for name, cost in costs.items()}
    summary["identical_steps"] = identical_steps(arms)
    summary["conditions"] = _conditions(load_config(arms["dmao"] / "config.yaml"))
    return summary


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write ``run_dir/summary.json`` in one step."""
    write_atomically(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")


def identical_steps(arms: Mapping[str, Path]) -> int:
    """Step up to which both arms have the same losses, to the bit: that of the first event, if all is well."""
    rows = [
        [row for row in read_json_lines(folder / "metrics.jsonl") if row["kind"] == "train"] for folder in arms.values()
    ]
    same = 0
    for left, right in zip(*rows, strict=False):
        if left["loss"] != right["loss"]:
            break
        same = left["step"]
    return same


def table(summary: Mapping[str, Any]) -> str:
    """The summary as the text table that the demo prints."""
    base, ours, overhead = summary["baseline"], summary["dmao"], summary["overhead"]
    rows = [
        ("", "baseline", "grow-and-drop", "change"),
        ("parameters", f"{base['params']:,}", f"{ours['params']:,}", _change(base["params"], ours["params"])),
        ("cross-entropy per label", f"{base['ce']:.3f}", f"{ours['ce']:.3f}", _change(base["ce"], ours["ce"])),
        ("WER, lexicon", f"{base['wer']:.1f} %", f"{ours['wer']:.1f} %", _change(base["wer"], ours["wer"])),
        ("CER, greedy", f"{base['cer']:.1f} %", f"{ours['cer']:.1f} %", _change(base["cer"], ours["cer"])),
        (
            "training step",
            f"{base['step_ms']:.0f} ms",
            f"{ours['step_ms']:.0f} ms",
            _change(base["step_ms"], ours["step_ms"]),
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join((row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    intervals = overhead["intervals"]
    for key, label in (("scoring_pct", "scoring"), ("events_pct", "events")):
        low, high = intervals[key]
        lines.append(
            f"overhead of {label}: {overhead[key]:+.2f} % of the training time "
            f"(95 % interval {low:+.2f} to {high:+.2f})"
        )
    lines.append(f"the first {summary['identical_steps']} steps of both arms have the same losses, to the bit")
    lines.append("this call took: " + ", ".join(f"{part} {spent:.0f} s" for part, spent in summary["seconds"].items()))
    return "\n".join(lines)


def _change(before: float, after: float) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before else "n/a"


def _results(folder: Path) -> dict[str, Any]:
    """Parameters and held-out results of a finished run."""
    rows = [row for row in read_json_lines(folder / "metrics.jsonl") if row["kind"] == "eval" and row["split"] == SPLIT]
    if not rows:
        raise UserError(f"demo: {folder} holds no results on the split '{SPLIT}'; train it with eval_splits: [{SPLIT}]")
    return {"params": parameters(folder), **{key: rows[-1][key] for key in ("ce", "wer", "cer")}}


def parameters(folder: Path) -> int:
    """Parameters in use of the newest checkpoint of a run."""
    from dmao.step import elastic_of, restore

    model, _, controller, config = restore(load(list_checkpoints(folder / "checkpoints")[0]))
    return elastic_of(model, controller, config).live_parameters()


def _structure(folder: Path) -> dict[str, Any]:
    events = list(read_json_lines(folder / "events.jsonl"))
    if not events:
        raise UserError(f"demo: {folder} went through no event; choose more steps or an earlier schedule")
    return {
        "events": [{key: event[key] for key in EVENT_KEYS} for event in events],
        "component_counts": events[-1]["counts_after"],
    }


def _conditions(config: TrainConfig) -> dict[str, Any]:
    """What the figures depend on."""
    import dmao_kernels

    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "capability": dmao_kernels.cpu_capability(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads_per_arm": config.threads,
        "seed": config.seed,
        "steps": config.steps,
    }
