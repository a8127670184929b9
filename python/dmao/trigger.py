"""A schedule at work in one training: whether an event falls now."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Ranking = Callable[[], Sequence[float]]


class Trigger(Protocol):
    """What a schedule's ``trigger(total_steps)`` returns."""

    def due(self, step: int, done: int, scores: Ranking) -> bool:
        """Whether an event falls after `step` steps, `done` events being done; `scores` fetches the components' scores
        from the device, so it is called where they are needed alone."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""


class FixedSteps:
    """Events after given steps, rising; one that was missed is made up for."""

    def __init__(self, steps: Sequence[int]):
        self.steps = steps

    def due(self, step: int, done: int, scores: Ranking) -> bool:
        """Whether the next event's step has come."""
        return done < len(self.steps) and step >= self.steps[done]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it is a function of the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where another kind of schedule left the state."""
        _require_keys(state, set())


class SettledRanking:
    """Events when the order of the components' scores has settled, each at its deadline at the latest.

    Every `every` steps the scores are compared with those at the check before, by Spearman's rank correlation. Above
    `threshold` for `patience` checks in a row, they have settled. An event begins a new count.
    """

    def __init__(self, earliest: int, deadlines: Sequence[int], every: int, threshold: float, patience: int):
        self.earliest, self.deadlines = earliest, deadlines
        self.every, self.threshold, self.patience = every, threshold, patience
        self._checked = 0  # checks that the steps so far have seen
        self._restart(0)

    def due(self, step: int, done: int, scores: Ranking) -> bool:
        """Whether the ranking has settled or the next event's deadline has come."""
        if done >= len(self.deadlines):
            return False
        if done != self._done:
            self._restart(done)
        if step // self.every > self._checked:
            self._checked = step // self.every
            self._check(scores())
        return step >= self.deadlines[done] or (step >= self.earliest and self._agreed >= self.patience)

    def _restart(self, done: int) -> None:
        self._done, self._agreed, self._previous = done, 0, list[float]()

    def _check(self, scores: Sequence[float]) -> None:
        settled = bool(self._previous) and rank_correlation(self._previous, scores) > self.threshold
        self._agreed = self._agreed + 1 if settled else 0
        self._previous = list(scores)

    def state_dict(self) -> dict[str, Any]:
        """The checks so far."""
        return {
            "done": self._done,
            "checked": self._checked,
            "agreed": self._agreed,
            "previous": list(self._previous),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there. Raises ValueError where another kind of schedule left the state."""
        _require_keys(state, self.state_dict().keys())
        counts = [state[name] for name in ("done", "checked", "agreed")]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"load_state_dict: the schedule's counts must be whole numbers, got {counts}")
        self._done, self._checked, self._agreed = counts
        self._previous = [float(score) for score in state["previous"]]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: 1 where both order alike, 0 where one does not order at all; equal values share their mean rank.

    Ranks are doubled to whole numbers, so the result has the same bits everywhere.
    """
    if len(first) != len(second):
        raise ValueError(f"rank_correlation: both must have as many values, got {len(first)} and {len(second)}")
    a, b = _doubled_ranks(first), _doubled_ranks(second)
    spread = sum(x * x for x in a) * sum(y * y for y in b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(spread) if spread else 0.0


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of every value, less twice the mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks, first = [0] * len(values), 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for i in order[first : last + 1]:
            ranks[i] = first + last - (len(order) - 1)
        first = last + 1
    return ranks


def _require_keys(state: Mapping[str, Any], expected: Any) -> None:
    if set(state) != set(expected):
        raise ValueError(
            f"load_state_dict: the schedule's state must have the keys {sorted(expected)}, got {sorted(state)}: it is "
            "of another kind of schedule"
        )
