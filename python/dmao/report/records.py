"""The records of a run as the report needs them: read tolerantly, one row per step, in order of steps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
ARMS = ("baseline", "dmao")


@dataclass(frozen=True)
class Arm:
    """What one training wrote."""

    name: str
    train: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    health: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """All arms of a run, its summary, and a sentence about everything that could not be read."""

    root: Path
    arms: dict[str, Arm]
    summary: Mapping[str, Any]
    problems: list[str]


def read_run(root: Path) -> Run:
    """Read `root/summary.json` and the JSON lines of every arm; never fails on what they contain."""
    problems: list[str] = []
    arms = {name: _read_arm(root, name, problems) for name in ARMS}
    return Run(root, arms, _read_summary(root, problems), problems)


def number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON's integers have no end
        return None
    return found if math.isfinite(found) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def split_module(name: str) -> tuple[int | None, str]:
    """The block number and the family in a module's name.

    >>> split_module("encoder.blocks.3.feedforward1")
    (3, 'encoder.blocks.feedforward1')
    >>> split_module("head")
    (None, 'head')
    """
    match = re.search(r"(?:^|\.)(\d{1,9})(?=\.|$)", name)
    if match is None:
        return None, name
    return int(match[1]), (name[: match.start()] + name[match.end() :]).lstrip(".")


def families(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Module names as `{family: {block: name}}`, families in order of first appearance, with short names
    (`blocks.feedforward1` becomes `feedforward1`) where they stay unambiguous."""
    grouped: dict[str, dict[int, str]] = {}
    for name in names:
        block, family = split_module(name)
        grouped.setdefault(family, {})[0 if block is None else block] = name
    last = [family.rsplit(".", 1)[-1] for family in grouped]
    if len(set(last)) < len(last):
        return grouped
    return dict(zip(last, grouped.values(), strict=True))


def _read_arm(root: Path, name: str, problems: list[str]) -> Arm:
    folder = root / name
    if not folder.is_dir():
        problems.append(f"{name}/ is missing: this arm has not run.")
        return Arm(name)
    metrics = _read_lines(root, folder / "metrics.jsonl", problems)
    kinds = {kind: [row for row in metrics if row.get("kind") == kind] for kind in ("train", "eval", "health")}
    adapts = name != "baseline"
    return Arm(
        name,
        train=_latest(kinds["train"]),
        evals=_latest(kinds["eval"], lambda row: str(row.get("split"))),
        health=_latest(kinds["health"]),
        events=_latest(_read_lines(root, folder / "events.jsonl", problems)) if adapts else [],
        scores=_latest(_read_lines(root, folder / "scores.jsonl", problems)) if adapts else [],
    )


def _latest(rows: list[Row], key: Callable[[Row], str] = lambda row: "") -> list[Row]:
    """The last row of every step: a resumed run writes the steps behind its checkpoint a second time."""
    kept = {(step, key(row)): row for row in rows if (step := number(row.get("step"))) is not None}
    return [kept[where] for where in sorted(kept)]


def _read_lines(root: Path, path: Path, problems: list[str]) -> list[Row]:
    text = _read_text(root, path, problems)
    rows: list[Row] = []
    unreadable = 0
    for line in text.splitlines():
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            unreadable += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
    if unreadable:
        problems.append(f"{path.relative_to(root)}: {unreadable} line(s) left out because they are not JSON.")
    return rows


def _read_summary(root: Path, problems: list[str]) -> Mapping[str, Any]:
    text = _read_text(root, root / "summary.json", problems)
    if not text:
        return {}
    try:
        return mapping(json.loads(text))
    except (ValueError, RecursionError):
        problems.append("summary.json is not JSON; the table is empty.")
        return {}


def _read_text(root: Path, path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        problems.append(f"{path.relative_to(root)} is missing.")
        return ""
