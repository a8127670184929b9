"""What one grow-and-drop event did, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dmao_kernels.structure import Pairs

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


def join_copies(first: Pairs, second: Pairs) -> Copies:
    """Those of both, as lists of pairs."""
    return {
        name: [(source, copy) for source, copy in (*first.get(name, ()), *second.get(name, ()))]
        for name in {**first, **second}
    }
