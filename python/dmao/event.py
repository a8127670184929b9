"""What one grow-and-drop event did, as data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dmao_kernels.structure import Elastic, Pairs, Plan, Scores

_log = logging.getLogger(__name__)

Copies = dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Event:
    """What one event did; plain data.

    step: optimizer steps done before it.  index: 0 for the first event.
    counts_before, counts_after: components of every module.  scores: of the components before, as the plan
        saw them.
    dropped, grown: numbers of components.  removed, added: their cost.
    cost_before, cost: of the model before and after.  unit: of all costs.
    parameters_before, parameters: in use before and after.  seconds: time the event took.
    digest: SHA-256 of the plan, the same on every rank.  copies: (source, copy) pairs, numbered as
        afterwards.
    """

    step: int
    index: int
    counts_before: dict[str, int]
    counts_after: dict[str, int]
    scores: dict[str, list[float]]
    dropped: int
    grown: int
    removed: float
    added: float
    cost_before: int
    cost: int
    unit: str
    parameters_before: int
    parameters: int
    seconds: float
    digest: str
    copies: Copies

    @classmethod
    def of(
        cls,
        plan: Plan,
        elastic: Elastic,
        step: int,
        index: int,
        scores: Mapping[str, Tensor | Sequence[float]],
        seconds: float,
    ) -> Event:
        """Of a plan that was applied to the model; modules without a place in it are as they were."""
        before = {**elastic.counts(), **{m.name: m.components for m in plan.modules}}
        after = {**before, **plan.counts()}
        numbers = {name: values.tolist() if isinstance(values, Tensor) else values for name, values in scores.items()}
        return cls(
            step=step,
            index=index,
            counts_before=before,
            counts_after=after,
            scores={name: list(values[: before[name]]) for name, values in numbers.items()},
            dropped=plan.dropped,
            grown=plan.grown,
            removed=plan.removed,
            added=plan.added,
            cost_before=plan.before,
            cost=plan.after,
            unit=plan.unit,
            parameters_before=elastic.live_parameters(before),
            parameters=elastic.live_parameters(after),
            seconds=seconds,
            digest=plan.digest(),
            copies=copies_of(plan),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Event:
        """The inverse of to_dict, also of what JSON made of it."""
        return cls(**{**values, "copies": join_copies({}, values["copies"])})

    def __str__(self) -> str:
        sizes = [f"{self.parameters_before:,} -> {self.parameters:,} parameters"]
        if self.unit != "parameters":
            sizes.append(f"{self.cost_before:,} -> {self.cost:,} {self.unit}")
        return (
            f"event {self.index + 1} after step {self.step}: {self.dropped} components dropped, "
            f"{self.grown} grown, {', '.join(sizes)}, {1000 * self.seconds:.0f} ms"
        )


class Lazy:
    """A record that lies on the device until somebody looks at it: any attribute, or ``str``, reads it, once."""

    def __init__(self, read: Callable[[], Any]):
        self._read = read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask for these
            raise AttributeError(name)
        return getattr(self._value(), name)

    def __str__(self) -> str:
        return str(self._value())

    def _value(self) -> Any:
        if "_found" not in self.__dict__:
            self._found = self._read()
        return self._found


def told(event: Event, scores: Scores, frozen: Collection[str]) -> Event:
    """The event, after a warning that names the modules without any score: they are not used yet, or dead."""
    if names := scores.unscored(event.scores, frozen):
        _log.warning(
            "GrowAndDrop: at event %d all scores of %s are zero, as where no gradient has reached what is scored: "
            "these components may go first; freeze a part that is used later, which keeps its width",
            event.index + 1,
            ", ".join(sorted(names)),
        )
    return event


def copies_of(plan: Plan) -> Copies:
    """The (source, copy) pairs that a plan makes."""
    return {m.name: list(m.copies) for m in plan.modules if m.copies}


def join_copies(first: Pairs, second: Pairs) -> Copies:
    """Those of both, as lists of pairs."""
    return {
        name: [(source, copy) for source, copy in (*first.get(name, ()), *second.get(name, ()))]
        for name in {**first, **second}
    }


def saved_copies(state: Mapping[str, Any]) -> Copies:
    """The pairs in a controller's state. Raises ValueError where they, or its numbers, are not what they must be."""
    for name, least in (("budget", 1), ("step", 0)):
        if type(state[name]) is not int or state[name] < least:
            raise ValueError(f"GrowAndDrop: {name} must be a whole number from {least}, got {state[name]!r}")
    modules, copies = state["structure"]["modules"], join_copies({}, state["copies"])
    for name, pairs in copies.items():
        components = modules[name]["components"] if name in modules else 0
        for pair in pairs:
            if not all(type(place) is int and 0 <= place < components for place in pair):
                raise ValueError(f"GrowAndDrop: copies of {name} must be of its {components} components, got {pair}")
    return copies
