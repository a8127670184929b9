"""The plan of an event made on the device: ``make_plan`` as sorts and prefix sums, nothing of which is waited for.

It drops and doubles what ``make_plan`` would (``structure/selection.py`` tells the rules), within the slots there are.
All tensors over components are in the order of worth; int64 and float64 sums run in the order of ``make_plan``'s, so
that thresholds agree to the last bit where prefix sums are computed one by one, as on the CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.structure.costs import Costs, ParameterCost
from dmao_kernels.structure.plan import FRESH, ModulePlan, Plan
from dmao_kernels.structure.selection import SELECTIONS, Selection
from dmao_kernels.structure.slots.edit import DEAD

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic, ElasticModule


@dataclass(frozen=True)
class SlotPlan:
    """What one event does in slots storage. Data on the device, read by nobody until somebody asks for ``plan``.

    sources: of every module int64 [capacity], the old slot of every new one, FRESH or DEAD.
    met: bool, whether the budget was met within one smallest component. One that cannot be met even without all that
        may go leaves everything as it is; else the nearest plan is taken.
    seed: of the growth noise.  revive: whether empty modules begin anew.  edits: of the model before it.
    """

    sources: Mapping[str, Tensor]
    met: Tensor
    seed: int
    selection: Selection
    revive: bool
    edits: int
    _market: _Market

    @cached_property
    def plan(self) -> Plan:
        """The same as plain data, with counts and digest. Waits for the device."""
        return self._market.plan(self)


def make_slot_plan(
    elastic: Elastic,
    scores: Mapping[str, Tensor],
    fraction: float = 0.15,
    selection: Selection = "exact",
    *,
    budget: int | None = None,
    costs: Costs | None = None,
    per_cost: bool = False,
    keep_at_least: int = 0,
    revive: bool = False,
    frozen: Collection[str] = (),
    seed: int = 0,
) -> SlotPlan:
    """``make_plan`` on the device, for a model in slots storage.

    scores: of every module [capacity], finite; those of dead slots are not looked at (``Scores.values``).
    costs: default: parameters.  revive: every empty module gets one fresh component.  frozen: modules that stay as
        they are.
    The other arguments are as in ``make_plan``; no module grows beyond its slots.

    Raises ValueError for arguments out of range. What only the device knows is no error: see ``SlotPlan.met``.
    """
    if elastic.storage != "slots":
        raise ValueError("make_slot_plan: the model must be in slots storage")
    if selection not in SELECTIONS:
        raise ValueError(f"make_slot_plan: selection must be 'exact' or 'paper', got '{selection}'")
    if not 0 <= fraction < 1 or (selection == "paper" and fraction == 0):
        raise ValueError(f"make_slot_plan: fraction must be in [0, 1), above 0 for 'paper', got {fraction}")
    if selection == "paper" and budget is not None:
        raise ValueError("make_slot_plan: a budget needs selection='exact'")
    modules = [m for name, m in elastic.modules.items() if name not in frozen]
    if not modules:
        raise ValueError("make_slot_plan: all modules are frozen")
    costs = costs or ParameterCost().measure(elastic)
    fixed = torch.tensor(costs.fixed, device="cpu")
    for name in frozen:
        m = elastic.modules[name]
        count = cast(Tensor, m.slots).sum()
        fixed = fixed.to(count.device, non_blocking=True) + count * costs.own[name] + (count > 0) * costs.shared[name]
    market = _Market(modules, scores, costs, per_cost, keep_at_least, revive, fixed)
    dropped, grown, met = market.paper(fraction) if selection == "paper" else market.exact(fraction, budget)
    return SlotPlan(market.sources(dropped, grown), met, seed, selection, revive, elastic.edits, market)


class _Market:
    """All slots in one list, the live ones first and these in the order of worth."""

    def __init__(
        self,
        modules: list[ElasticModule],
        scores: Mapping[str, Tensor],
        costs: Costs,
        per_cost: bool,
        keep_at_least: int,
        revive: bool,
        fixed: Tensor,
    ) -> None:
        self.modules = modules
        self.device = modules[0].device
        self.capacities = [m.stored for m in modules]
        keep = [max(0 if m.can_be_empty else 1, keep_at_least) for m in modules]
        self.costs = [(costs.own[m.name], costs.shared[m.name]) for m in modules]
        self.unit = costs.unit
        self.amortised = [own + shared / m.standard for m, (own, shared) in zip(modules, self.costs, strict=True)]
        # [modules]
        own, shared = zip(*self.costs, strict=True)
        self.own, self.shared, self.keep, self.most = self._upload([own, shared, keep, self.capacities], torch.int64)
        self.cost = self._upload(self.amortised, torch.float64)
        start = F.pad(torch.tensor(self.capacities, device="cpu").cumsum(0), (1, -1))
        self.start = start.to(self.device, non_blocking=True)
        # [slots], in the order in which they lie
        owner = torch.arange(len(modules), device="cpu").repeat_interleave(torch.tensor(self.capacities, device="cpu"))
        self.owner = owner.to(self.device, non_blocking=True)
        self.live = torch.cat([cast(Tensor, m.slots) for m in modules])
        self.count = self._per_module(self.owner, self.live)
        worth = torch.cat([scores[m.name] for m in modules]).double()
        if per_cost:
            worth = worth / self.cost[self.owner]
        # [slots], in the order of worth; 0.0 - x, since a sort may tell -0.0 from 0.0
        self.order = torch.where(self.live, 0.0 - worth, torch.inf).argsort(stable=True)
        self.of = self.owner[self.order]
        self.alive = self.live[self.order]
        self.rank = self._rank()
        self.droppable = self.alive & (self.rank >= self.keep[self.of])
        # totals
        self.fresh = (self.count == 0) & revive
        self.adaptable = (self.cost * self.count).cumsum(0)[-1]
        fixed = fixed.to(self.device, non_blocking=True)
        self.before = fixed + self._size(self.count)
        self.floor = fixed + self._size(torch.minimum(self.keep, self.count))
        self.revival = ((self.own + self.shared) * self.fresh).sum()

    def _upload(self, values: Sequence[float] | Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device="cpu").to(self.device, non_blocking=True)

    def _per_module(self, owner: Tensor, values: Tensor) -> Tensor:
        """Sums over the slots of every module: [..., slots] to [..., modules]."""
        sums = torch.zeros(*values.shape[:-1], len(self.modules), dtype=torch.int64, device=self.device)
        return sums.scatter_add(-1, owner.expand_as(values), values.long())

    def _size(self, count: Tensor) -> Tensor:
        return (self.own * count + self.shared * (count > 0)).sum()

    def _rank(self) -> Tensor:
        """How many of the same module are worth more."""
        together = self.of.argsort(stable=True)
        place = torch.arange(len(together), device=self.device) - self.start[self.of[together]]
        return torch.empty_like(place).scatter_(0, together, place)

    def by_fraction(self, fraction: float) -> tuple[Tensor, Tensor]:
        """Those that go so that ``fraction`` of the adaptable cost is just passed, from the lowest up; their cost."""
        paid = torch.where(self.droppable, self.cost[self.of], 0.0).flip(0).cumsum(0)
        chosen = self.droppable.flip(0) & (F.pad(paid, (1, -1)) <= fraction * self.adaptable)
        chosen = chosen & (fraction > 0)
        return chosen.flip(0), torch.where(chosen, paid, 0.0).amax()

    def paper(self, fraction: float) -> tuple[Tensor, Tensor, Tensor]:
        """The published thresholds; revived components count as added."""
        dropped, removed = self.by_fraction(fraction)
        room = self.most - self.count + self._per_module(self.of, dropped)
        eligible = self.alive & ~dropped & (self.rank < room[self.of])
        revived = torch.where(self.fresh, self.cost, 0.0).cumsum(0)[-1:]
        added = torch.cat([revived, torch.where(eligible, self.cost[self.of], 0.0)]).cumsum(0)[:-1]
        grown = eligible & ~((added > fraction * self.adaptable) & (added > removed))
        return dropped, grown, torch.ones((), dtype=torch.bool, device=self.device)

    def exact(self, fraction: float, budget: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """The budget kept within one smallest component: all tries side by side, the first that meets it is taken."""
        goal = self.before if budget is None else torch.full_like(self.before, budget)
        total = self.before + self.revival
        own = self.own[self.of]
        price = own + self.shared[self.of] * (self.rank == 0)  # with the last one goes what the module shares
        paid = (price * self.droppable).flip(0).cumsum(0)
        demanded = (self.droppable.flip(0) & (total - F.pad(paid, (1, -1)) > goal)).sum()
        surplus = (self.by_fraction(fraction)[0].sum() - demanded).clamp(min=0)
        tries = torch.arange(len(own).bit_length() + 1, device=self.device)
        place = (self.droppable.flip(0).cumsum(0) - 1).flip(0)
        dropped = self.droppable & (place < (demanded + (surplus >> tries))[:, None])  # [tries, slots]

        gap = goal - total + (price * dropped).sum(-1)
        room = self.most - self.count + self._per_module(self.of, dropped)
        eligible = self.alive & ~dropped & (self.rank < room[:, self.of])
        grown, gap = self._take(eligible, own, gap, len({own for own, _ in self.costs}), dropped)
        room = self.most - self._per_module(self.of, grown)
        prices = {price for own, shared in self.costs for price in (own, own + shared)}
        kept, gap = self._take(dropped & (self.rank < room[:, self.of]), price, gap, len(prices), dropped)
        dropped = dropped & ~kept

        most = torch.iinfo(torch.int64).max
        smallest = torch.where(self.count > 0, self.own, most).amin()
        smallest = torch.where(smallest < most, smallest, self.own.amax())
        reachable, good = goal >= self.floor + self.revival, gap < smallest
        chosen = torch.where(good.any(), good.long().argmax(), gap.argmin())[None]
        self.fresh = self.fresh & reachable
        return (
            dropped.index_select(0, chosen)[0] & reachable,
            grown.index_select(0, chosen)[0] & reachable,
            good.any() & reachable,
        )

    def _take(
        self, eligible: Tensor, price: Tensor, gap: Tensor, prices: int, dropped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take what fits into the gap, in order: [tries, slots], and the gap that remains.

        Up to the first that does not fit all are taken; the gap only falls, so whatever costs as much is out for good.
        Every pass settles one of the ``prices`` at least. The best of an emptied module pays what the module shares:
        without it the others cannot come back.
        """
        taken = torch.zeros_like(eligible)
        still = eligible & (price <= gap[:, None])
        for _ in range(prices):
            gone = (self.rank == 0) & dropped & ~taken & ~still
            still = still & (self._per_module(self.of, gone) == 0)[:, self.of]
            now = still & ((price * still).cumsum(-1) <= gap[:, None])
            gap = gap - (price * now).sum(-1)
            taken, still = taken | now, still & ~now
            still = still & (price <= gap[:, None])
        return taken, gap

    def sources(self, dropped: Tensor, grown: Tensor) -> dict[str, Tensor]:
        """The selection as the old slot of every new one; a copy stands right behind its source."""
        self.times = self.alive.new_zeros(self.alive.shape, dtype=torch.int64).scatter(
            0, self.order, self.alive.long() - dropped.long() + grown.long()
        )
        after = self._per_module(self.owner, self.times)
        place = torch.arange(len(self.owner), device=self.device) - self.start[self.owner]
        wanted = (after.cumsum(0) - after)[self.owner] + place
        old = torch.searchsorted(self.times.cumsum(0), wanted, right=True) - self.start[self.owner]
        source = torch.where(place < after[self.owner], old, DEAD)
        source = torch.where((place == 0) & self.fresh[self.owner], FRESH, source)
        return dict(zip((m.name for m in self.modules), source.split(self.capacities), strict=True))

    def plan(self, slot_plan: SlotPlan) -> Plan:
        """The plan as ``make_plan`` writes it down."""
        counts, before = self.count.tolist(), int(self.before)
        modules: list[ModulePlan] = []
        removed: list[float] = []
        added: list[float] = []
        revived: list[float] = []
        change = dropped = grown = 0
        parts = zip(self.modules, self.costs, self.amortised, counts, self.times.split(self.capacities), strict=True)
        for m, (own, shared), cost, n, times in parts:
            source = slot_plan.sources[m.name].tolist()
            new = tuple(s for s in source if s != DEAD)
            modules.append(ModulePlan(m.name, n, new))
            change += own * (len(new) - n) + shared * (bool(new) - bool(n))
            lost, doubled = times[:n].tolist().count(0), times[:n].tolist().count(2)
            dropped, grown = dropped + lost, grown + doubled
            removed += [cost] * lost
            added += [cost] * doubled
            revived += [cost] * len(modules[-1].fresh)
        return Plan(
            tuple(modules),
            slot_plan.seed,
            slot_plan.selection,
            dropped=dropped,
            grown=grown,
            removed=sum(removed, 0.0),
            added=sum((*revived, *added), 0.0),
            before=before,
            after=before + change,
            unit=self.unit,
        )
