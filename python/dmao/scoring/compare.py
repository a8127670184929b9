"""Two kinds of training compared on the same utterances and seeds: paired bootstrap (Bisani and Ney, 2004)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dmao.errors import UserError, reason
from dmao.files import read_json
from dmao.progress import bar

Unit = Literal["utterance", "speaker"]
_AT_ONCE = 500  # draws
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Word error rates of both sides in percent, over all seeds, and what the second one changes.

    difference: second minus first, with the ends of its 95 % interval.  relative: the same in percent of the first.
    better: share of the draws in which the second one has fewer errors.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    relative: float
    better: float
    seeds: int
    units: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"WER {self.first:.2f} % -> {self.second:.2f} %: {self.difference:+.2f} "
            f"(95 % interval {self.low:+.2f} to {self.high:+.2f}), {self.relative:+.1f} % relative; "
            f"fewer errors in {100 * self.better:.1f} % of the draws ({self.seeds} pairs)"
        )


def compare(
    first: Sequence[Path], second: Sequence[Path], unit: Unit = "utterance", draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Of report.json files, the n-th of `first` against the n-th of `second`: pairs of equal seeds.

    Each draw takes as many pairs and as many units (utterances, or speakers with all of theirs) as there are, with
    replacement, the same for both sides. With one pair only the units vary.

    Raises UserError where the files do not pair, and warns where they are of different searches.
    """
    if not first or len(first) != len(second):
        raise UserError(f"compare: give as many reports on both sides, got {len(first)} and {len(second)}")
    reports = {path: _read(path, unit) for side in (first, second) for path in side}
    units = reports[first[0]].keys()
    for path, report in reports.items():
        if report.keys() != units:
            raise UserError(f"compare: {path} is of other utterances than {first[0]}")
    _warn_of_searches(reports)
    counts = np.array([[[reports[path][name] for name in units] for path in side] for side in (first, second)], float)
    # [2, pairs, units] each; words differ where alternatives were taken
    errors, words = np.ascontiguousarray(np.moveaxis(counts, -1, 0))
    for side, paths in zip(words, (first, second), strict=True):
        if not side.sum():
            raise UserError(f"compare: the references in {paths[0]} hold no word")
    rates = 100 * errors.sum((1, 2)) / words.sum((1, 2))
    changes = _draw(errors, words, draws, np.random.default_rng(seed))
    low, high = np.percentile(changes, [2.5, 97.5])
    difference = float(rates[1] - rates[0])
    return Comparison(
        first=float(rates[0]),
        second=float(rates[1]),
        difference=difference,
        low=float(low),
        high=float(high),
        relative=100 * difference / max(float(rates[0]), 1e-9),
        better=float((changes < 0).mean()),
        seeds=len(first),
        units=len(units),
    )


def _draw(errors: np.ndarray, words: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The difference in percent of each draw."""
    _, pairs, units = errors.shape
    changes = []
    for start in bar(range(0, draws, _AT_ONCE), "bootstrap", f"{_AT_ONCE} draws"):
        count = min(_AT_ONCE, draws - start)
        drawn = rng.multinomial(units, np.full(units, 1 / units), size=count).astype(float)  # how often each one
        times = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=count)
        made, said = ((drawn @ side.transpose(0, 2, 1) * times).sum(-1) for side in (errors, words))  # [2, draws]
        said = np.maximum(said, 1)
        changes.append(100 * (made[1] * said[0] - made[0] * said[1]) / (said[0] * said[1]))  # of whole numbers: exact
    return np.concatenate(changes)


def _warn_of_searches(reports: Iterable[Path]) -> None:
    """Scales may be tuned for every run. Another search, model or mapping would pass for a difference of the runs."""
    found = [(path, search) for path in reports if (search := _search(path)) is not None]
    for path, search in found[1:]:
        first, its = found[0]
        for key, value in search.items():
            if value != its[key]:
                message = "compare: not the same search: %s of %s is %s, of %s %s"
                _log.warning(message, key, first, its[key], path, value)
                return


def _search(report: Path) -> dict[str, Any] | None:
    """What `dmao decode` wrote beside the report, but for the scales; None where it is not there."""
    try:
        found = read_json(report.with_name("search.json"))
        lm, normalisation = found["lm"] or "none", found.get("normalisation", "none")
        return {"search": found["kind"], "language model": lm, "beam": found["beam"], "normalisation": normalisation}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(path: Path, unit: Unit) -> dict[str, tuple[int, int]]:
    """Unit -> (errors, words of the references)."""
    try:
        utterances = read_json(path)["utterances"]
        found: dict[str, tuple[int, int]] = {}
        for id, one in utterances.items():
            name = one["speaker"] if unit == "speaker" else id
            errors, words = found.get(name, (0, 0))
            *counts, reference = one["counts"]
            found[name] = errors + sum(counts), words + reference
        return found
    except FileNotFoundError:
        raise UserError(f"compare: no report {path}; `dmao decode` writes it") from None
    except OSError as error:
        raise UserError(f"compare: cannot read report {path}: {reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"compare: cannot read report {path}: {type(error).__name__}: {error}") from error
