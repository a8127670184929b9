"""Which components go and which are copied: a pure function of scores, costs and budget.

Plain Python, deterministic, one sort and a few passes: every rank that sees the same scores finds the same
plan. The rules are those of Dynamic Acoustic Model Architecture Optimization (arXiv 2506.13180).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dmao_kernels.structure.plan import FRESH, Group, ModulePlan, Plan

Selection = Literal["exact", "paper"]
SELECTIONS = ("exact", "paper")


def make_plan(
    groups: Sequence[Group],
    fraction: float = 0.15,
    selection: Selection = "exact",
    *,
    budget: int | None = None,
    fixed: int = 0,
    per_cost: bool = False,
    keep_at_least: int = 0,
    revive: Sequence[str] = (),
    seed: int = 0,
) -> Plan:
    """Drop the lowest-scored components and double the highest-scored ones.

    groups: the modules in order (``Elastic.groups(scores)``). Equal scores keep this order: the first is
        worth most.
    fraction: share of the adaptable cost A (the sum of all components' costs, shared parameters amortised) to
        drop: from the lowest up while ``removed <= fraction * A``, so it overshoots by up to one component.
    selection:
        "paper" doubles from the highest down while ``added <= fraction * A or added <= removed``; the size
        drifts. "exact" doubles from the highest down whatever still fits the budget, then keeps the best of
        the dropped ones that still fit. Afterwards ``budget - smallest < after <= budget``, smallest being
        the smallest component of all.
    budget: parameters after the event, for "exact"; default: as many as before, so that several events do not
        drift.
    fixed: parameters outside the groups, counted in budget, before and after.
    per_cost: rank by score / cost.  keep_at_least: components that every module keeps.
    revive: names of empty modules that get one fresh component each, paid by the budget.
    seed: of the noise with which growth breaks the symmetry; it travels with the plan.

    When "exact" can be met: whatever was neither doubled nor kept at the end is dearer than the remaining
    gap. So the gap is below the smallest component unless every one of the smallest was doubled, or had been
    dropped (and was kept after all, or stands in an emptied module, where its return costs the shared
    parameters as well). Then the surplus of drops, beyond those that the budget demands, is halved and the
    pass repeated, at most log2(n) + 1 times. Where the model is within one smallest component below the
    budget already, as with the default or after an earlier event, and nothing is revived, no drop is demanded
    and the last try, which drops nothing, meets it: such a budget is always met. Another one may be out of
    reach, as components at most double; this is an error that tells how near one came.

    Raises ValueError for scores that are not finite (naming the module), arguments out of range, and an
    unreachable budget.
    """
    _check(groups, fraction, selection, budget, revive)
    market = _Market(groups, per_cost, keep_at_least, frozenset(revive), fixed)
    if selection == "paper":
        dropped, grown = market.paper(fraction)
    else:
        dropped, grown = market.exact(fraction, market.before if budget is None else budget)
    return market.plan(dropped, grown, selection, seed)


def _check(groups: Sequence[Group], fraction: float, selection: str, budget: int | None, revive: Sequence[str]) -> None:
    if selection not in SELECTIONS:
        raise ValueError(f"make_plan: selection must be 'exact' or 'paper', got '{selection}'")
    if not 0 <= fraction < 1:
        raise ValueError(f"make_plan: fraction must be in [0, 1), got {fraction}")
    if selection == "paper" and fraction == 0:
        raise ValueError("make_plan: selection='paper' needs a fraction above 0")
    if selection == "paper" and budget is not None:
        raise ValueError("make_plan: a budget needs selection='exact'; 'paper' follows the published thresholds")
    sizes = {g.name: len(g.scores) for g in groups}
    if len(sizes) < len(groups):
        raise ValueError(f"make_plan: names of groups must differ, got {[g.name for g in groups]}")
    for name in revive:
        if name not in sizes:
            raise ValueError(f"make_plan: revive: there is no module {name}")
        if sizes[name]:
            raise ValueError(f"make_plan: revive: {name} is not empty, it has {sizes[name]} components")


class _Market:
    """All components in one list, their order of worth, and the two ways to select among them."""

    def __init__(
        self, groups: Sequence[Group], per_cost: bool, keep_at_least: int, revive: frozenset[str], fixed: int
    ) -> None:
        self.groups, self.revive = groups, revive
        self.of = [g for g, group in enumerate(groups) for _ in group.scores]
        self.own = [g.own for g in groups]
        self.shared = [g.shared for g in groups]
        self.cost = [g.cost for g in groups]
        self.count = [len(g.scores) for g in groups]
        self.keep = [max(g.keep, keep_at_least) for g in groups]
        self.adaptable = sum(g.cost * len(g.scores) for g in groups)
        self.before = fixed + sum(g.own * len(g.scores) + (g.shared if g.scores else 0) for g in groups)
        self.floor = fixed + sum(g.own * min(k, n) + (g.shared if min(k, n) else 0)
                                 for g, k, n in zip(groups, self.keep, self.count, strict=True))  # fmt: skip
        self.revival = sum(g.own + g.shared for g in groups if g.name in revive)
        worth = [s / (g.cost if per_cost else 1.0) for g in groups for s in g.scores]
        self.order = sorted(range(len(worth)), key=lambda i: -worth[i])  # stable: the first of equals is worth most

    def droppable(self) -> list[int]:
        """All components that may go, the lowest first."""
        left = list(self.count)
        chosen = []
        for i in reversed(self.order):
            g = self.of[i]
            if left[g] > self.keep[g]:
                left[g] -= 1
                chosen.append(i)
        return chosen

    def by_fraction(self, candidates: Sequence[int], fraction: float) -> tuple[int, float]:
        """How many of the candidates go so that ``fraction`` of the adaptable cost is just passed, and their cost."""
        removed, n = 0.0, 0
        while fraction > 0 and n < len(candidates) and removed <= fraction * self.adaptable:
            removed += self.cost[self.of[candidates[n]]]
            n += 1
        return n, removed

    def paper(self, fraction: float) -> tuple[set[int], set[int]]:
        """The published thresholds; revived components count as added."""
        candidates = self.droppable()
        n, removed = self.by_fraction(candidates, fraction)
        dropped, grown = set(candidates[:n]), set()
        added = sum(g.cost for g in self.groups if g.name in self.revive)
        for i in self.order:
            if added > fraction * self.adaptable and added > removed:
                break
            if i not in dropped:
                grown.add(i)
                added += self.cost[self.of[i]]
        return dropped, grown

    def exact(self, fraction: float, budget: int) -> tuple[set[int], set[int]]:
        """The published idea, with the budget kept within one smallest component (see ``make_plan``)."""
        if budget < self.floor + self.revival:
            raise ValueError(
                f"make_plan: a budget of {budget} parameters cannot be met: {self.floor + self.revival} "
                "remain when everything that may be dropped is gone"
            )
        candidates = self.droppable()
        demanded = self.demanded(candidates, budget)
        surplus = max(0, self.by_fraction(candidates, fraction)[0] - demanded)
        smallest = min((g.own for g in self.groups if g.scores), default=max(self.own, default=1))
        nearest = None
        while True:
            dropped, grown, gap = self.fill(candidates[: demanded + surplus], budget)
            if gap < smallest:
                return dropped, grown
            nearest = gap if nearest is None else min(nearest, gap)
            if surplus == 0:
                break
            surplus //= 2
        raise ValueError(
            f"make_plan: a budget of {budget} parameters cannot be met within one component ({smallest}): "
            f"{budget - nearest} is the nearest found, as each component at most doubles in one event"
        )

    def demanded(self, candidates: Sequence[int], budget: int) -> int:
        """How many of the candidates must go for the budget's sake."""
        total, left, n = self.before + self.revival, list(self.count), 0
        while total > budget:
            total -= self.price(candidates[n], left, step=-1)
            n += 1
        return n

    def fill(self, drops: Sequence[int], budget: int) -> tuple[set[int], set[int], int]:
        """Drop these, then spend what the budget leaves: on doubles, highest first, then on keeping the best
        of the drops.
        """
        gap, left = budget - self.before - self.revival, list(self.count)
        for i in drops:
            gap += self.price(i, left, step=-1)
        dropped, grown = set(drops), set()
        for i in self.order:
            if i not in dropped and self.own[self.of[i]] <= gap:
                gap -= self.own[self.of[i]]
                grown.add(i)
        for i in reversed(drops):
            g = self.of[i]
            if self.own[g] + (0 if left[g] else self.shared[g]) <= gap:
                gap -= self.price(i, left, step=1)
                dropped.remove(i)
        return dropped, grown, gap

    def price(self, i: int, left: list[int], step: int) -> int:
        """Parameters in use that come or go with component i; ``left`` (components per module) is moved by ``step``."""
        g = self.of[i]
        others = left[g] - (1 if step < 0 else 0)
        left[g] += step
        return self.own[g] + (0 if others else self.shared[g])

    def plan(self, dropped: set[int], grown: set[int], selection: str, seed: int) -> Plan:
        """Write the selection down as sources."""
        modules, first = [], 0
        for group, n in zip(self.groups, self.count, strict=True):
            sources = [j for j in range(n) if first + j not in dropped for _ in range(2 if first + j in grown else 1)]
            modules.append(ModulePlan(group.name, n, (FRESH,) if group.name in self.revive else tuple(sources)))
            first += n
        change = sum(
            g.own * (len(m.sources) - n) + g.shared * (bool(m.sources) - bool(n))
            for g, m, n in zip(self.groups, modules, self.count, strict=True)
        )
        revived = sum(g.cost for g in self.groups if g.name in self.revive)
        return Plan(
            tuple(modules),
            seed,
            selection,
            dropped=len(dropped),
            grown=len(grown),
            removed=sum((self.cost[self.of[i]] for i in sorted(dropped)), 0.0),
            added=revived + sum((self.cost[self.of[i]] for i in sorted(grown)), 0.0),
            before=self.before,
            after=self.before + change,
        )
