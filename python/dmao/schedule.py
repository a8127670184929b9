"""When the model changes its widths, and the learning rate at every step (docs/METHOD.md, sections 3, 4 and 8).

All are settings of a whole training; what they need to remember between steps is in trigger.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from dmao.trigger import FixedSteps, SettledRanking

_MOST_EVENTS = 10_000


@dataclass(frozen=True)
class Schedule:
    """Grow-and-drop events, equally spaced from `start` to `end`.

    start, end: the steps of the first and of the last event: a float is a share of all steps, an int counts
        steps. One event needs only one of the two. With `end` alone the first event falls at `end / events`,
        as published (E/n, 2E/n, ... E).
    events: how many events.
    fraction: share of the adaptable cost that all events together re-allocate; each event gets fraction
        / events.

    Raises ValueError for a value out of range; `steps` raises it where the events do not fit into the
    training.
    """

    start: float | int | None = None
    end: float | int | None = None
    events: int = 1
    fraction: float = 0.15

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            _check_position("Schedule", name, getattr(self, name))
        if self.start is None and self.end is None:
            raise ValueError("Schedule: start or end must say when the events fall, got neither")
        _check_events("Schedule", self.events, self.fraction)

    @property
    def fraction_per_event(self) -> float:
        """What one event re-allocates, as a share of the adaptable cost."""
        return self.fraction / self.events

    def steps(self, total_steps: int) -> tuple[int, ...]:
        """The steps after which the events fall, rising, for a training of `total_steps` steps."""
        end = _to_steps(self.end if self.end is not None else self.start, total_steps)
        first = _to_steps(self.start, total_steps) if self.start is not None else end / self.events
        if self.events == 1 and round(first) != round(end):
            raise ValueError(
                f"Schedule: one event falls at one step, got start {self.start} and end {self.end}; "
                "leave one of them out, or ask for more events"
            )
        if self.events > 1 and first >= end:
            raise ValueError(f"Schedule: {self.events} events need start < end, got {self.start} and {self.end}")
        gap = (end - first) / max(1, self.events - 1)
        steps = tuple(round(first + index * gap) for index in range(self.events))
        return _checked_steps("Schedule", steps, round(first), total_steps)

    def trigger(self, total_steps: int) -> FixedSteps:
        """The schedule at work."""
        return FixedSteps(self.steps(total_steps))


@dataclass(frozen=True)
class WhenSettled:
    """Grow-and-drop events as soon as the ranking of the components has settled.

    Every `every` steps the scores are ranked and compared with the ranking `every` steps before. After `patience`
    checks in a row whose rank correlation (Spearman's) is above `threshold` an event falls; then the count begins anew.

    earliest: the first step at which an event may fall: a float is a share of all steps, an int counts steps.
    latest: the step at which the last event falls in any case; the others have deadlines equally spaced before it.
    events, fraction: as in Schedule.

    Raises ValueError for a value out of range; `steps` and `trigger` raise it where the events do not fit into the
    training.
    """

    earliest: float | int
    latest: float | int
    every: int = 20
    threshold: float = 0.98
    patience: int = 3
    events: int = 1
    fraction: float = 0.15

    def __post_init__(self) -> None:
        for name in ("earliest", "latest"):
            if getattr(self, name) is None:
                raise ValueError(f"WhenSettled: {name} must be a share of all steps or a step, got None")
            _check_position("WhenSettled", name, getattr(self, name))
        check_whole("WhenSettled", every=self.every, patience=self.patience)
        if not -1 <= self.threshold < 1:
            raise ValueError(f"WhenSettled: threshold must lie in [-1, 1), got {self.threshold!r}")
        _check_events("WhenSettled", self.events, self.fraction)

    @property
    def fraction_per_event(self) -> float:
        """What one event re-allocates, as a share of the adaptable cost."""
        return self.fraction / self.events

    def steps(self, total_steps: int) -> tuple[int, ...]:
        """The steps after which the events fall at the latest."""
        first, last = (_to_steps(position, total_steps) for position in (self.earliest, self.latest))
        if first > last:
            raise ValueError(f"WhenSettled: earliest must not be after latest, got {self.earliest} and {self.latest}")
        deadlines = tuple(round(first + (i + 1) * (last - first) / self.events) for i in range(self.events))
        return _checked_steps("WhenSettled", deadlines, round(first), total_steps)

    def trigger(self, total_steps: int) -> SettledRanking:
        """The schedule at work."""
        earliest = math.ceil(_to_steps(self.earliest, total_steps))
        return SettledRanking(earliest, self.steps(total_steps), self.every, self.threshold, self.patience)


def _checked_steps(where: str, steps: tuple[int, ...], first: int, total_steps: int) -> tuple[int, ...]:
    if len(set(steps)) < len(steps):
        raise ValueError(f"{where}: {len(steps)} events do not fit between step {first} and step {steps[-1]}")
    if steps[0] < 1 or steps[-1] >= total_steps:
        raise ValueError(
            f"{where}: events must fall after step 1 to {total_steps - 1} of {total_steps}, got {list(steps)}"
        )
    return steps


def check_whole(where: str, least: int = 1, **values: int) -> None:
    """Raise ValueError unless these are whole numbers, `least` or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{where}: {name} must be a whole number from {least}, got {value!r}")


def _check_events(where: str, events: int, fraction: float) -> None:
    check_whole(where, events=events)
    if events > _MOST_EVENTS:
        raise ValueError(f"{where}: events must be at most {_MOST_EVENTS}, got {events}")
    if not 0 < fraction < 1:
        raise ValueError(f"{where}: fraction must lie between 0 and 1, got {fraction!r}")


def _check_position(where: str, name: str, value: float | int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: {name} must be a share of all steps (float) or a step (int), got {value!r}")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError(f"{where}: {name} as a share of all steps must lie between 0 and 1, got {value}")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{where}: {name} as a step must be 1 or more, got {value}")


def _to_steps(position: float | int | None, total_steps: int) -> float:
    assert position is not None
    return position * total_steps if isinstance(position, float) else float(position)


@dataclass(frozen=True)
class LearningRate:
    """Learning rate as a function of the share of the training that is done.

    shape "one-cycle": cosine from peak * first up to peak during `warmup` (share of all steps), cosine down
    to peak * last. shape "piecewise": straight lines through `points`, pairs (share of all steps, multiple of
        the peak). Published for LibriSpeech with peak 4e-4: [[0, .01], [.45, 1], [.9, .01], [1, 2.5e-5]].
    shape "constant": the peak.
    """

    peak: float = 3e-3
    shape: Literal["one-cycle", "piecewise", "constant"] = "one-cycle"
    warmup: float = 0.2
    first: float = 0.04
    last: float = 1e-3
    points: Sequence[tuple[float, float]] = field(default=())

    def __post_init__(self) -> None:
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise ValueError(f"LearningRate: peak must be positive, got {self.peak!r}")
        if self.shape not in ("one-cycle", "piecewise", "constant"):
            raise ValueError(f"LearningRate: shape must be one-cycle, piecewise or constant, got {self.shape!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"LearningRate: warmup must lie in [0, 1), got {self.warmup!r}")
        if not all(math.isfinite(factor) and factor >= 0 for factor in (self.first, self.last)):
            raise ValueError(f"LearningRate: first and last must be 0 or more, got {self.first}, {self.last}")
        if self.shape == "piecewise":
            _check_points(self.points)

    def at(self, step: int, total_steps: int) -> float:
        """The learning rate of step `step` (1 to total_steps)."""
        share = (step - 1) / max(1, total_steps - 1)
        return self.peak * {"one-cycle": self._one_cycle, "piecewise": self._piecewise, "constant": _one}[self.shape](
            share
        )

    def _one_cycle(self, share: float) -> float:
        if share < self.warmup:
            return _cosine(self.first, 1.0, share / self.warmup)
        return _cosine(1.0, self.last, (share - self.warmup) / (1 - self.warmup))

    def _piecewise(self, share: float) -> float:
        for (x0, y0), (x1, y1) in pairwise(self.points):
            if share <= x1:
                return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
        return self.points[-1][1]


def _one(share: float) -> float:
    return 1.0


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def _check_points(points: Sequence[tuple[float, float]]) -> None:
    if len(points) < 2 or any(len(point) != 2 for point in points):
        raise ValueError(
            f"LearningRate: points must be two or more pairs (share, multiple of the peak), got {points!r}"
        )
    shares = [share for share, _ in points]
    if shares[0] != 0 or shares[-1] != 1 or any(a >= b for a, b in pairwise(shares)):
        raise ValueError(f"LearningRate: the shares of points must rise from 0 to 1, got {shares}")
    if any(not (math.isfinite(factor) and factor >= 0) for _, factor in points):
        raise ValueError(f"LearningRate: the multiples of points must be 0 or more, got {points!r}")
