"""The tables of arms: what each changes in the configuration. The others are compared with the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """changes: "key=value".
    events: so many, in equal distances up to where the configuration has its last one.
    widths_of: the arm whose widths this one starts with, from scratch, seed by seed.
    """

    changes: tuple[str, ...] = ()
    events: int | None = None
    widths_of: str | None = None


def _arm(**keys: object) -> Arm:
    return Arm(tuple(f"grow_and_drop.{key}={value}" for key, value in keys.items()))


def _schedule(**keys: object) -> Arm:
    """Keys that the configuration's own schedule gets besides."""
    return Arm(tuple(f"grow_and_drop.schedule.{key}={value}" for key, value in keys.items()))


NO_EVENTS = "grow_and_drop.schedule=null"
BASELINE = Arm((NO_EVENTS,))
EXACT = _arm(selection="exact")


def _ablation(arms: dict[str, Arm]) -> dict[str, Arm]:
    return {"baseline": BASELINE, **arms}


TABLES: dict[str, dict[str, Arm]] = {
    "main": {
        "baseline": BASELINE,
        "dmao_exact": EXACT,
        "dmao_paper": _arm(selection="paper"),
        "random": _arm(selection="exact", ranking="random"),
        "scratch": Arm(widths_of="dmao_exact"),
    },
    "metric": _ablation({m: _arm(metric=m) for m in ("taylor", "gradient", "magnitude", "signed")}),
    "scope": _ablation(
        {"slice": _arm(scope="slice"), "component": _arm(scope="component"), "per_cost": _arm(per_cost="true")}
    ),
    "granularity": _ablation({f"components_{n}": Arm((f"model.components={n}",)) for n in (2, 4, 8, 16)}),
    "fraction": _ablation({f"fraction_{f:g}": _schedule(fraction=f) for f in (0.05, 0.1, 0.15, 0.2, 0.3)}),
    "iterations": _ablation({f"events_{n}": Arm(events=n) for n in (1, 2, 4, 8)}),
    "init": _ablation({split: _arm(split=split) for split in ("asymmetric", "halves", "uniform")}),
    "timing": _ablation(
        {f"start_{s:g}": _schedule(start=s, end="null", events=1) for s in (0.05, 0.1, 0.15, 0.2, 0.35, 0.5)}
    ),
}


def chosen(table: str, names: Sequence[str]) -> dict[str, Arm]:
    """The arms of a table, or those with these names; ValueError for an unknown one."""
    arms = TABLES[table]
    if unknown := sorted(set(names) - arms.keys()):
        raise ValueError(f"experiment: table {table} has no arm {unknown[0]}; it has {', '.join(arms)}")
    return {name: arm for name, arm in arms.items() if not names or name in names}
