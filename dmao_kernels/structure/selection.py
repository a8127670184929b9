"""Which components go and which are copied: a pure function of scores, costs and budget.

Plain Python, deterministic, one sort and a few passes: every rank that sees the same scores finds the same
plan. The rules are those of Dynamic Acoustic Model Architecture Optimization (arXiv 2506.13180).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dmao_kernels.structure.plan import FRESH, Caps, Group, ModulePlan, Plan

Selection = Literal["exact", "paper"]
SELECTIONS = ("exact", "paper")
UNCAPPED = Caps()


def make_plan(
    groups: Sequence[Group],
    fraction: float = 0.15,
    selection: Selection = "exact",
    *,
    budget: int | None = None,
    fixed: int = 0,
    unit: str = "parameters",
    per_cost: bool = False,
    keep_at_least: int = 0,
    caps: Caps = UNCAPPED,
    revive: Sequence[str] = (),
    seed: int = 0,
) -> Plan:
    """Drop the lowest-scored components and double the highest-scored ones.

    groups: the modules in order (``Elastic.groups(scores)``). Equal scores keep this order: the first is
        worth most. Where a group asks for a ``multiple``, so many components of like rank in their module go or
        double together, as one component with the mean of their scores.
    fraction: share of the adaptable cost A (the sum of all components' costs, shared parts amortised) to
        drop: from the lowest up while ``removed <= fraction * A``, so it overshoots by up to one component.
    selection:
        "paper" doubles from the highest down while ``added <= fraction * A or added <= removed``; the size
        drifts. "exact" doubles from the highest down whatever still fits the budget, then keeps the best of
        the dropped ones that still fit. Afterwards ``budget - smallest < after <= budget``, smallest being
        the smallest component of all.
    budget: cost after the event, for "exact"; default: as much as before, so that several events do not
        drift.
    fixed: cost of what stands outside the groups, counted in budget, before and after.  unit: of all costs.
    per_cost: rank by score / cost.  keep_at_least: components that every module keeps.  caps: on growth.
    revive: names of empty modules that get one fresh component each (``multiple`` of them), paid by the budget; where
        the caps do not allow all, the first ones.
    seed: of the noise with which growth breaks the symmetry; it travels with the plan.

    When "exact" can be met: whatever was neither doubled nor kept at the end is dearer than the remaining
    gap. So the gap is below the smallest component unless every one of the smallest was doubled, or had been
    dropped (and was kept after all, or stands in an emptied module, where its return costs the shared
    part as well), or a cap forbade it. Then the surplus of drops, beyond those that the budget demands, is halved
    and the pass repeated, at most log2(n) + 1 times. Where the model is within one smallest component below the
    budget already, as with the default or after an earlier event, and nothing is revived, no drop is demanded
    and the last try, which drops nothing, meets it: such a budget is always met. Another one may be out of
    reach, as components at most double; this is an error that tells how near one came. Where the caps alone keep
    the model from its budget, the nearest plan stands, and later events go on from there.

    Raises ValueError for scores that are not finite (naming the module), arguments out of range, and an
    unreachable budget.
    """
    _check(groups, fraction, selection, budget, revive)
    market = _Market(groups, fixed, unit, per_cost, keep_at_least, caps, revive)
    if selection == "paper":
        dropped, grown = market.paper(fraction)
    else:
        dropped, grown = market.exact(fraction, market.before if budget is None else budget)
    return market.plan(dropped, grown, selection, seed)


def budget_range(
    groups: Sequence[Group], *, fixed: int = 0, keep_at_least: int = 0, caps: Caps = UNCAPPED
) -> tuple[int, int]:
    """The least and the most that the model can cost after one event, of caps regarding the width of modules alone.

    For the arguments see ``make_plan``.
    """
    market = _Market(groups, fixed, "", False, keep_at_least, caps, ())
    return market.floor, market.ceiling


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
    """All blocks in one list, their order of worth, and the two ways to select among them.

    A block is ``multiple`` components of one module that go or double together; mostly it is one component.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        fixed: int,
        unit: str,
        per_cost: bool,
        keep_at_least: int,
        caps: Caps,
        revive: Sequence[str],
    ) -> None:
        self.groups, self.unit = groups, unit
        self.blocks = [(g, block) for g, group in enumerate(groups) for block in _blocks(group)]
        self.of = [g for g, _ in self.blocks]
        self.own = [g.own * g.multiple for g in groups]
        self.shared = [g.shared for g in groups]
        self.cost = [g.cost * g.multiple for g in groups]
        self.count = [len(g.scores) // g.multiple for g in groups]
        self.keep = [-(-max(g.keep, keep_at_least) // g.multiple) for g in groups]
        self.most = [caps.width(g) // g.multiple for g in groups]
        self.allowed = caps.added(sum(len(g.scores) for g in groups))
        self.revive = self._revivable(revive)
        self.adaptable = sum(cost * n for cost, n in zip(self.cost, self.count, strict=True))
        self.before = fixed + self._size(self.count)
        self.floor = fixed + self._size([min(k, n) for k, n in zip(self.keep, self.count, strict=True)])
        self.ceiling = fixed + self._size([min(2 * n, most) for n, most in zip(self.count, self.most, strict=True)])
        self.revival = sum(self.own[g] + self.shared[g] for g in self.revive)
        worth = [sum(groups[g].scores[j] for j in block) / len(block) / (groups[g].cost if per_cost else 1.0)
                 for g, block in self.blocks]  # fmt: skip
        self.order = sorted(range(len(worth)), key=lambda i: -worth[i])  # stable: the first of equals is worth most

    def _size(self, count: Sequence[int]) -> int:
        """What so many blocks of every module cost."""
        return sum(own * n + (shared if n else 0) for own, shared, n in zip(self.own, self.shared, count, strict=True))

    def _revivable(self, names: Sequence[str]) -> list[int]:
        """The modules to revive, as far as ``allowed`` goes, which is what remains of it then."""
        place = {group.name: g for g, group in enumerate(self.groups)}
        chosen = []
        for g in map(place.__getitem__, names):
            if self.groups[g].multiple <= self.allowed:
                self.allowed -= self.groups[g].multiple
                chosen.append(g)
        return chosen

    def droppable(self) -> list[int]:
        """All blocks that may go, the lowest first."""
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
        dropped, grown, left = set(candidates[:n]), set(), list(self.count)
        for i in dropped:
            left[self.of[i]] -= 1
        added, allowed = sum((self.cost[g] for g in self.revive), 0.0), self.allowed
        for i in self.order:
            g = self.of[i]
            if added > fraction * self.adaptable and added > removed:
                break
            if i not in dropped and left[g] < self.most[g] and self.groups[g].multiple <= allowed:
                grown.add(i)
                left[g] += 1
                allowed -= self.groups[g].multiple
                added += self.cost[g]
        return dropped, grown

    def exact(self, fraction: float, budget: int) -> tuple[set[int], set[int]]:
        """The published idea, with the budget kept within one smallest component (see ``make_plan``)."""
        if budget < self.floor + self.revival:
            raise ValueError(
                f"make_plan: a budget of {budget} {self.unit} cannot be met: {self.floor + self.revival} "
                "remain when everything that may be dropped is gone"
            )
        candidates = self.droppable()
        demanded = self.demanded(candidates, budget)
        surplus = max(0, self.by_fraction(candidates, fraction)[0] - demanded)
        smallest = min(
            (own for own, n in zip(self.own, self.count, strict=True) if n), default=max(self.own, default=1)
        )
        tries = []
        while True:
            dropped, grown, gap, capped = self.fill(candidates[: demanded + surplus], budget)
            if gap < smallest:
                return dropped, grown
            tries.append((gap, capped, dropped, grown))
            if surplus == 0:
                break
            surplus //= 2
        gap, capped, dropped, grown = min(tries, key=lambda t: t[0])
        if capped:
            return dropped, grown
        raise ValueError(
            f"make_plan: a budget of {budget} {self.unit} cannot be met within one component ({smallest}): "
            f"{budget - gap} is the nearest found, as each component at most doubles in one event"
        )

    def demanded(self, candidates: Sequence[int], budget: int) -> int:
        """How many of the candidates must go for the budget's sake."""
        total, left, n = self.before + self.revival, list(self.count), 0
        while total > budget:
            total -= self.price(candidates[n], left, step=-1)
            n += 1
        return n

    def fill(self, drops: Sequence[int], budget: int) -> tuple[set[int], set[int], int, bool]:
        """Drop these, then spend what the budget leaves: on doubles, highest first, then on keeping the best
        of the drops. Also returns the gap that remains, and whether a cap forbade to spend more of it.
        """
        gap, left = budget - self.before - self.revival, list(self.count)
        for i in drops:
            gap += self.price(i, left, step=-1)
        dropped, grown, capped, allowed = set(drops), set(), False, self.allowed
        for i in self.order:
            g = self.of[i]
            if i in dropped or self.own[g] > gap:
                continue
            if left[g] >= self.most[g] or self.groups[g].multiple > allowed:
                capped = True
                continue
            gap -= self.price(i, left, step=1)
            allowed -= self.groups[g].multiple
            grown.add(i)
        for i in reversed(drops):
            g = self.of[i]
            if self.own[g] + (0 if left[g] else self.shared[g]) > gap:
                continue
            if left[g] >= self.most[g]:
                capped = True
                continue
            gap -= self.price(i, left, step=1)
            dropped.remove(i)
        return dropped, grown, gap, capped

    def price(self, i: int, left: list[int], step: int) -> int:
        """What comes or goes with block i; ``left`` (blocks per module) is moved by ``step``."""
        g = self.of[i]
        others = left[g] - (1 if step < 0 else 0)
        left[g] += step
        return self.own[g] + (0 if others else self.shared[g])

    def plan(self, dropped: set[int], grown: set[int], selection: str, seed: int) -> Plan:
        """Write the selection down as sources."""
        times = [[1] * len(g.scores) for g in self.groups]
        for i, (g, block) in enumerate(self.blocks):
            for j in block:
                times[g][j] = 0 if i in dropped else 2 if i in grown else 1
        modules = [
            ModulePlan(group.name, len(group.scores), tuple(j for j, n in enumerate(times[g]) for _ in range(n)))
            for g, group in enumerate(self.groups)
        ]
        for g in self.revive:
            modules[g] = ModulePlan(self.groups[g].name, 0, (FRESH,) * self.groups[g].multiple)
        change = self._size([len(m.sources) // g.multiple for g, m in zip(self.groups, modules, strict=True)])
        return Plan(
            tuple(modules),
            seed,
            selection,
            dropped=sum(len(self.blocks[i][1]) for i in dropped),
            grown=sum(len(self.blocks[i][1]) for i in grown),
            removed=sum((self.cost[self.of[i]] for i in sorted(dropped)), 0.0),
            added=sum((self.cost[g] for g in (*self.revive, *(self.of[i] for i in sorted(grown)))), 0.0),
            before=self.before,
            after=self.before + change - self._size(self.count),
            unit=self.unit,
        )


def _blocks(group: Group) -> list[tuple[int, ...]]:
    """The components in blocks of ``multiple`` of like rank, the highest first."""
    order = sorted(range(len(group.scores)), key=lambda j: -group.scores[j])
    return [tuple(order[first : first + group.multiple]) for first in range(0, len(order), group.multiple)]
