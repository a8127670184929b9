"""What one event does to the components of a model, as data."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

FRESH = -1
MOST_COMPONENTS = 1 << 20  # of a module: more is a mistake, and would fill the memory before any tensor does
ROUNDING = 1e-9  # 7 % of 100 components are 7, though 0.07 * 100 is a little more


@dataclass(frozen=True)
class Group:
    """One elastic module as the plan sees it.

    scores: one per component, higher is worth more; empty for an empty module.
    own: what one component costs, in the unit of the budget.  shared: what the module costs besides, while it has
        components.
    standard: components it was built with.  keep: how many must stay in any case.
    multiple: their number stays a multiple of this.
    """

    name: str
    scores: tuple[float, ...]
    own: int
    shared: int = 0
    standard: int = 0
    keep: int = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.own < 1:
            raise ValueError(f"make_plan: {self.name or 'the model'}: a component must cost 1 or more, got {self.own}")
        if self.multiple < 1 or len(self.scores) % self.multiple:
            raise ValueError(
                f"make_plan: {self.name or 'the model'}: the components must be a multiple of {self.multiple}, "
                f"got {len(self.scores)}"
            )
        for j, score in enumerate(self.scores):
            if not math.isfinite(score):
                raise ValueError(
                    f"make_plan: {self.name or 'the model'}: scores must be finite, component {j} has {score}"
                )

    @property
    def cost(self) -> float:
        """What one component costs, the shared part amortised over the standard width."""
        return self.own + self.shared / (self.standard or len(self.scores) or 1)


@dataclass(frozen=True)
class Caps:
    """How much one event may grow.

    max_growth: it adds at most this share of all components, rounded up.
    max_width: a module grows to at most this multiple of its standard width; one that is wider stays so.

    Raises ValueError where one is out of range.
    """

    max_growth: float | None = None
    max_width: float | None = None

    def __post_init__(self) -> None:
        if self.max_growth is not None and not 0 < self.max_growth <= 1:
            raise ValueError(f"max_growth must be in (0, 1], got {self.max_growth}")
        if self.max_width is not None and not 1 <= self.max_width < math.inf:
            raise ValueError(f"max_width must be finite and 1 or more, got {self.max_width}")

    def added(self, components: int) -> float:
        """How many components may come to so many."""
        return math.inf if self.max_growth is None else math.ceil(self.max_growth * components - ROUNDING)

    def width(self, group: Group) -> int:
        """How many components a module may have."""
        n = len(group.scores)
        if self.max_width is None:
            return max(2 * n, group.multiple)
        return max(n, math.floor(self.max_width * (group.standard or n) + ROUNDING))


@dataclass(frozen=True)
class ModulePlan:
    """One module's part of a plan.

    components: how many there are before.
    sources: the old component of every new one, in order; of a component that stands twice, the first is the
        source and the second its copy; -1 is a fresh one.
    """

    name: str
    components: int
    sources: tuple[int, ...]

    def __post_init__(self) -> None:
        for source in self.sources:
            if not FRESH <= source < self.components:
                raise ValueError(
                    f"plan: {self.name or 'the model'}: source {source} is not one of {self.components} components"
                )
        old = [s for s in self.sources if s != FRESH]
        if any(times > 2 for times in Counter(old).values()):
            raise ValueError(
                f"plan: {self.name or 'the model'}: a component at most doubles in one event, "
                f"got sources {self.sources}"
            )

    @property
    def changed(self) -> bool:
        """Whether anything is dropped, copied, added or moved."""
        return self.sources != tuple(range(self.components))

    @property
    def dropped(self) -> tuple[int, ...]:
        """Old components that go."""
        return tuple(sorted(set(range(self.components)) - set(self.sources)))

    @property
    def copies(self) -> tuple[tuple[int, int], ...]:
        """(source, copy) pairs, as new components."""
        first: dict[int, int] = {}
        pairs = []
        for new, old in enumerate(self.sources):
            if old != FRESH and old in first:
                pairs.append((first[old], new))
            first.setdefault(old, new)
        return tuple(pairs)

    @property
    def fresh(self) -> tuple[int, ...]:
        """New components without a source."""
        return tuple(new for new, old in enumerate(self.sources) if old == FRESH)


@dataclass(frozen=True)
class Plan:
    """What one event does. Data only: JSON-able, comparable, replayable.

    dropped, grown: numbers of components.  removed, added: their cost, the shared part amortised.
    before, after: what the model costs, the shared part counted while a module has components.  unit: of all these.
    seed: of the growth noise.
    """

    modules: tuple[ModulePlan, ...]
    seed: int = 0
    selection: str = "given"
    dropped: int = 0
    grown: int = 0
    removed: float = 0.0
    added: float = 0.0
    before: int = 0
    after: int = 0
    unit: str = "parameters"

    @property
    def sources(self) -> dict[str, tuple[int, ...]]:
        """The sources of every module."""
        return {m.name: m.sources for m in self.modules}

    def counts(self) -> dict[str, int]:
        """Components of every module afterwards."""
        return {m.name: len(m.sources) for m in self.modules}

    def to_json(self) -> str:
        """The plan as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that ``to_json`` wrote. Raises ValueError where the text is no plan."""
        try:
            data = json.loads(text)
            modules = tuple(ModulePlan(m["name"], m["components"], tuple(m["sources"])) for m in data.pop("modules"))
            return Plan(modules, **data)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"plan: not the JSON of a plan: {error}") from None

    def digest(self) -> str:
        """A hash that ranks compare before they apply their plans."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def resized(components: int, width: int) -> tuple[int, ...]:
    """The sources of a module that gets this width: fresh ones come behind what is there, or the last ones go.

    Raises ValueError where that is no width.
    """
    if not 0 <= width <= MOST_COMPONENTS:
        raise ValueError(f"a module must have 0 to {MOST_COMPONENTS} components, got {width}")
    return (*range(min(components, width)), *(FRESH,) * (width - components))


def given_plan(sources: Mapping[str, Sequence[int]], components: Mapping[str, int], seed: int = 0) -> Plan:
    """A plan written by hand: the sources of every module that changes, and its number of components now."""
    modules = tuple(ModulePlan(name, components[name], tuple(values)) for name, values in sources.items())
    return Plan(
        modules,
        seed,
        dropped=sum(len(m.dropped) for m in modules),
        grown=sum(len(m.copies) for m in modules),
    )
