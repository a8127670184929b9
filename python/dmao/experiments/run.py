"""One table: every arm with every seed trained, decoded and compared. What is finished is not repeated.

FOLDER/ARM/seed-N/       a run, with decode/SPLIT; once outcome.json is there, nothing else of it is needed
FOLDER/results.json      {"arms": {ARM: {"ce": [per seed], "wer": [...], "parameters": [...]}}, "against", "widths"}
FOLDER/results.md        the table
FOLDER/widths.svg        where the width went, beside the published pattern
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dmao.config import TrainConfig, load_config
from dmao.errors import UserError, first_line
from dmao.experiments.redistribution import Curves, redistribution_plot, relative_widths
from dmao.experiments.tables import NO_EVENTS, Arm
from dmao.files import read_json, require_writable, write_atomically
from dmao.metrics import finite
from dmao.parsing import ConfigError
from dmao.recognise import Recogniser, Search, check_references, check_search, decode
from dmao.schedule import Schedule
from dmao.scoring import Normaliser
from dmao.scoring.compare import compare
from dmao.source import CorpusSource, Source
from dmao.trainer import TrainResult, check_same_training, train
from dmao.tune import tune
from dmao.widths import require_same_components

_log = logging.getLogger(__name__)

Configure = Callable[[tuple[str, ...]], TrainConfig]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_count(value)


# What must be in the outcome of a run, whoever wrote it.
_OUTCOME: Mapping[str, Callable[[Any], bool]] = {
    "split": lambda value: isinstance(value, str),
    "ce": lambda value: value is None or _is_number(value),  # null where the labels spell no utterance
    "wer": _is_number,
    "parameters": _is_count,
    "components": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "config": lambda value: isinstance(value, dict),
    "decoding": lambda value: isinstance(value, dict),
}


@dataclass(frozen=True)
class Plan:
    """What is to be done with each run.

    order: the arms of the table, the one that the others are compared with first.
    split: decoded, scored and compared.  dev: scales are tuned on it, run by run; None: they stay as in `search`.
    """

    folder: Path
    order: tuple[str, ...]
    split: str = "test"
    dev: str | None = None
    search: Search = dataclasses.field(default_factory=Search)
    normaliser: Normaliser = dataclasses.field(default_factory=Normaliser)

    def run_dir(self, arm: str, seed: int) -> Path:
        """Where a run is."""
        return self.folder / arm / f"seed-{seed}"

    def decoding(self) -> dict[str, Any]:
        """What runs must have in common for their word error rates to be comparable; plain values."""
        return _named(self.search) | {"dev": self.dev, "normalisation": str(self.normaliser)}


def run_arms(
    plan: Plan,
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    configure: Configure,
    data: Callable[[TrainConfig], Source | None] = lambda config: None,
) -> None:
    """Trains and decodes all arms, seed by seed, and writes the results after each run.

    configure: the configuration with these changes.  data: the source of a training; None: the corpus of its config.

    Raises UserError under torchrun, where the folder cannot be written or holds another table, a split or the language
    model is bad, a finished run was decoded otherwise, an arm needs another one that has not been trained, and whatever
    training raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("experiment: takes one process; train runs with several by `dmao train`, then start this")
    require_writable(plan.folder / "results.json")
    _require_own_results(plan)
    _finished(plan)  # the table is to have them all: what does not fit is told before a training
    for seed, (name, arm) in itertools.product(seeds, arms.items()):
        if arm.widths_of not in arms:  # else its widths are still to come
            _require_events(name, arm, _configured(plan, name, arm, seed, configure))
    checked = False
    for seed in seeds:
        for name, arm in arms.items():
            run_dir = plan.run_dir(name, seed)
            config = _configured(plan, name, arm, seed, configure)
            if (finished := _read(plan, run_dir)) is not None:
                check_same_training(config, finished["config"], run_dir)
                continue
            source = data(config)
            if not checked:
                _check_decoding(plan, source or CorpusSource(config))
                checked = True
            _decode(plan, train(config, run_dir, source), source)
            _log.info("experiment: %s, seed %d is finished", name, seed)
            write_results(plan)
    write_results(plan)


def _require_own_results(plan: Plan) -> None:
    """Raises UserError where the folder has the results of another table, which would be replaced."""
    try:
        others = [name for name in read_json(plan.folder / "results.json")["arms"] if name not in plan.order]
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged: it is made anew from the outcomes
        return
    if others:
        raise UserError(
            f"experiment: {plan.folder} holds the results of another table, with the arm {others[0]}; expected one of "
            f"{', '.join(plan.order)}; choose another folder"
        )


def _check_decoding(plan: Plan, source: Source) -> None:
    """What would be told after the first training is told before it."""
    if plan.dev is not None:
        source.left_out(plan.dev)
    for split in filter(None, (plan.split, plan.dev)):
        check_references(source, split, plan.normaliser)
    check_search(plan.search, source)


def _configured(plan: Plan, name: str, arm: Arm, seed: int, configure: Configure) -> TrainConfig:
    config = _changed(name, arm, seed, configure)
    config = dataclasses.replace(config, eval_splits=tuple(dict.fromkeys((*config.eval_splits, plan.split))))
    if arm.widths_of is None:
        return config
    found = _read(plan, plan.run_dir(arm.widths_of, seed))
    if found is None:
        raise UserError(
            f"experiment: the widths of {plan.run_dir(arm.widths_of, seed)} are needed, and it is not finished: "
            "run that arm first"
        )
    require_same_components(config.model, TrainConfig.from_dict(found["config"]).model)
    return config.with_widths(found["components"])


def _changed(name: str, arm: Arm, seed: int, configure: Configure) -> TrainConfig:
    """The configuration as an arm has it. Raises ConfigError, which names the arm where it is what does not fit."""
    try:
        config = configure((*arm.changes, f"seed={seed}"))
        return config if arm.events is None else _with_events(config, arm.events)
    except ValueError as error:
        configure((f"seed={seed}",))  # raises what is wrong without the arm, too
        raise ConfigError(f"experiment: arm {name}: {error}; to leave it out, name the others by --arm") from error


def _require_events(name: str, arm: Arm, config: TrainConfig) -> None:
    """Raises ConfigError where an arm would be the baseline by another name."""
    if config.grow_and_drop.schedule is None and NO_EVENTS not in arm.changes and arm.widths_of is None:
        raise ConfigError(
            f"experiment: arm {name} needs events, got grow_and_drop.schedule: null; "
            "say when they fall, as by --set grow_and_drop.schedule.start=0.4"
        )


def _with_events(config: TrainConfig, events: int) -> TrainConfig:
    """The published iterations: with the last event at E they fall at E / n, 2 E / n, ... E."""
    schedule = config.grow_and_drop.schedule
    if not isinstance(schedule, Schedule):
        raise ConfigError("a number of events needs a schedule with fixed steps (start)")
    last = schedule.start if schedule.end is None else schedule.end
    several = dataclasses.replace(schedule, start=None, end=last, events=events)
    return dataclasses.replace(config, grow_and_drop=dataclasses.replace(config.grow_and_drop, schedule=several))


def _named(search: Search) -> dict[str, Any]:
    """Plain values; the language model by its name, as another machine has it in another folder."""
    return search.to_dict() | {"lm": search.lm and Path(search.lm).name}


def _outcome(run_dir: Path) -> Path:
    return run_dir / "outcome.json"


def _read(plan: Plan, run_dir: Path) -> dict[str, Any] | None:
    """What came out of a run, if it is finished. Raises UserError where it was not decoded as `plan` says."""
    path = _outcome(run_dir)
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = {"decoding": {}, **read_json(path)}  # outcomes of earlier versions have none
        wrong = [key for key, fits in _OUTCOME.items() if key not in found or not fits(found[key])]
        if not wrong:
            found["ce"] = math.nan if found["ce"] is None else found["ce"]
            found["config"] = TrainConfig.from_dict(found["config"]).to_dict()  # with the keys that are newer than it
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"experiment: cannot read {path}: {first_line(error)}") from error
    if wrong:
        raise UserError(f"experiment: {path} is not the outcome of a run: {wrong[0]} is {found.get(wrong[0])!r}")
    if found["split"] != plan.split:
        raise UserError(f"experiment: {path} is of the split {found['split']}, expected {plan.split}")
    had = found["decoding"]
    for key, wanted in plan.decoding().items():
        if key in had and had[key] != wanted:
            raise UserError(
                f"experiment: {path} was decoded otherwise: {key} was {had[key]}, now {wanted}; "
                "where its checkpoint is still there, delete that file to decode it again"
            )
    return found


def _finished(plan: Plan) -> dict[str, dict[int, dict[str, Any]]]:
    """{arm: {seed: what came out}} of all runs in the folder that are finished. Raises UserError as `_read`."""
    finished: dict[str, dict[int, dict[str, Any]]] = {}
    for name in plan.order:
        for path in (plan.folder / name).glob("seed-[0-9]*/outcome.json"):
            seed = path.parent.name.removeprefix("seed-")
            if not seed.isdecimal() or path.parent != plan.run_dir(name, int(seed)):
                continue  # a copy that somebody has set aside
            if (found := _read(plan, path.parent)) is not None:
                finished.setdefault(name, {})[int(seed)] = found
    return finished


def _decode(plan: Plan, result: TrainResult, source: Source | None) -> None:
    recogniser = Recogniser(result.checkpoint, source)
    search = plan.search
    if plan.dev is not None:
        search = tune(recogniser, plan.dev, search, plan.normaliser).search
    report = decode(recogniser, plan.split, search, plan.normaliser)
    outcome = {
        "split": plan.split,
        "decoding": plan.decoding(),
        "ce": result.evaluations[plan.split]["ce"],
        "wer": report.total.percent,
        "parameters": result.parameters,
        "components": result.component_counts,
        "config": load_config(result.run_dir / "config.yaml").to_dict(),
        "utterances": report.to_dict()["utterances"],
    }
    write_atomically(_outcome(result.run_dir), json.dumps(finite(outcome)) + "\n")


def write_results(plan: Plan) -> dict[str, Any]:
    """results.json and results.md of all runs in the folder that are finished."""
    finished = _finished(plan)
    arms = {
        name: {
            "seeds": sorted(runs),
            **{key: [runs[s][key] for s in sorted(runs)] for key in ("ce", "wer", "parameters")},
        }
        for name, runs in finished.items()
    }
    base = plan.order[0]
    others = [name for name in arms if name != base and base in arms]
    against = {name: _against(plan, base, name, finished) for name in others}
    widths = _widths(base, finished)
    results = {
        "split": plan.split,
        "search": _named(plan.search),
        "arms": arms,
        "base": base,
        "against": against,
        "widths": widths,
    }
    write_atomically(plan.folder / "results.json", _lists_in_lines(json.dumps(finite(results), indent=1)) + "\n")
    write_atomically(plan.folder / "results.md", results_table(results))
    if widths:
        write_atomically(plan.folder / "widths.svg", redistribution_plot(widths))
    return results


def _widths(base: str, finished: Mapping[str, Mapping[int, Any]]) -> Curves:
    """Widths relative to the first arm's, of the arms with the same uniform model: elsewhere a component is another
    width. Arms with the widths of one before are left out, and all where the first one has a module without components.
    """
    first = next(iter(finished.get(base, {}).values()), None)
    if first is None or 0 in first["components"].values():
        return {}
    uniform = first["components"]
    shown: dict[str, list[dict[str, int]]] = {}
    for name, runs in finished.items():
        counts = [runs[seed]["components"] for seed in sorted(runs)]
        same = all(run["config"]["model"] == first["config"]["model"] for run in runs.values())
        if same and counts not in shown.values() and all(count.keys() == uniform.keys() for count in counts):
            shown[name] = counts
    return relative_widths(shown, uniform)


def _lists_in_lines(text: str) -> str:
    """JSON with every list of plain values in one line."""
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)


def _against(plan: Plan, base: str, name: str, finished: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """Differences to `base` over the seeds that both have finished."""
    seeds = sorted(finished[base].keys() & finished[name].keys())
    if not seeds:
        return {"seeds": []}
    first, second = ([_outcome(plan.run_dir(arm, s)) for s in seeds] for arm in (base, name))
    changes = [finished[name][s]["ce"] - finished[base][s]["ce"] for s in seeds]
    return {"seeds": seeds, "ce": paired_interval(changes), "wer": compare(first, second).to_dict()}


def paired_interval(changes: Sequence[float]) -> dict[str, float | None]:
    """Mean of paired differences, and its 95 % interval by Student's t; without ends for a single pair."""
    mean = float(np.mean(changes))
    if len(changes) < 2:
        return {"difference": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, len(changes) - 1) * np.std(changes, ddof=1) / np.sqrt(len(changes)))
    return {"difference": mean, "low": mean - half, "high": mean + half}


def results_table(results: Mapping[str, Any]) -> str:
    """Means over the seeds, and paired differences to the first arm with their 95 % intervals, in Markdown."""
    lines = [
        f"| arm | seeds | parameters | cross-entropy | against {results['base']} | WER % | against {results['base']} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arm in results["arms"].items():
        other = results["against"].get(name, {})
        means = [float(np.mean(arm[key])) for key in ("parameters", "ce", "wer")]
        changes = [_interval(other.get(key), digits) for key, digits in (("ce", 3), ("wer", 2))]
        lines.append(
            f"| {name} | {len(arm['seeds'])} | {means[0]:,.0f} | {means[1]:.3f} | {changes[0]} | {means[2]:.2f} "
            f"| {changes[1]} |"
        )
    return "\n".join(lines) + "\n"


def _interval(found: Mapping[str, float | None] | None, digits: int) -> str:
    if not found:
        return ""
    middle = f"{found['difference']:+.{digits}f}"
    if found["low"] is None:
        return middle
    return f"{middle} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"
