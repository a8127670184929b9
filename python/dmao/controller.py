"""Grow-and-drop as one object beside any training loop: it scores, says when an event is due, and changes the widths.

controller = GrowAndDrop(model, optimizer, Schedule(start=0.4), total_steps=2000)
for step, batch in enumerate(batches, 1):
    loss_of(model, batch).backward()
    controller.observe()
    optimizer.step()
    optimizer.zero_grad()
    if controller.due(step):
        print(controller.adapt())
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmao.arguments import measured, require_choice, require_kinds
from dmao.distributed import averaged, first_ranks, refuse_wrapper, require_same, retire_wrappers, several, unwrap
from dmao.event import Copies, Event, Lazy, copies_of, join_copies, saved_copies, told
from dmao.optimizers import add_gates, require_optimizers, state_follows
from dmao.randomness import derive_seed
from dmao.schedule import Schedule, WhenSettled, check_whole
from dmao.trigger import Trigger
from dmao_kernels.structure import (
    SELECTIONS,
    SPLITS,
    Caps,
    CostModel,
    Costs,
    Elastic,
    Group,
    Metric,
    Plan,
    Scope,
    Scores,
    ScoringAdamW,
    Selection,
    SlotPlan,
    Split,
    Storage,
    apply_plan,
    apply_slot_plan,
    budget_range,
    copy_cosines,
    follow_copies,
    make_plan,
    make_slot_plan,
)
from dmao_kernels.structure.slots.storage import OptimizerOrMany
from dmao_kernels.structure.targets import check_companions, require_in_place

__all__ = ["Event", "GrowAndDrop"]

_log = logging.getLogger(__name__)


class GrowAndDrop:
    """Makes the widths of `model`'s elastic modules part of its training.

    model: modules that carry `component_layout`, or whose class is known
        (dmao_kernels.structure.register_family). They return what they contribute, and residual sums stand
        outside of them: a module that lost all its components returns zeros. Or an Elastic of it, which then says
        the storage: what `fully_shard` needs (docs/DISTRIBUTED.md).
    optimizer: its moments follow the components; several in a list; None where there is none to follow.
    schedule, total_steps: when the events fall: at fixed steps (Schedule), or once the ranking of the components has
        settled (WhenSettled).  Modules whose scored parameters are all frozen keep their width.
    metric: taylor, gradient, magnitude, signed, or gate (a learnable gate per component, added to the
        optimizer).
    scope: "slice" scores the published slice, "component" all that a component owns.
    beta: of the moving average of scores.
    selection: "exact" never exceeds the budget; "paper" selects as published.
    cost: what the model's parts cost: ParameterCost(), MacCost(length=...), LatencyCost(example), or Costs that were
        measured before.
    budget: what the model may cost after an event, in the unit of `cost`: None: as much as at the start; a float: this
        share of it; an int: so much.
    max_growth: an event adds at most this share of all components (rounded up).  max_width: no module grows beyond this
        multiple of its standard width.  align: the widths of modules stay multiples of this.
    components: per module, for known classes that do not tell their own number; of an Elastic, it has said so.
    split: how a copy shares its source's output weights.
    per_cost, keep_at_least: see make_plan.  revive: every event gives empty modules one fresh component.
    companions: models of the same structure edited along, for example an average of the weights; loading a state
        gives them its widths, metric "gate" gives them gates.
    observe_every: score every n-th step only.
    storage, headroom: "slots" keeps all shapes and waits for nothing, within `headroom` times the widths (see
        dmao_kernels.structure.Elastic.to_slots). Then a budget that cannot be met is no error (Event.dropped is 0, or
        the nearest plan is taken), and neither are scores that are all zero.

    A ScoringAdamW, given alone, scores in its own step(): then nobody calls observe().

    On several processes (torch.distributed), scores are averaged over the ranks at an event and the plans compared.
    `model` may be wrapped in DistributedDataParallel; after an event, go on with `distributed.rewrap` of it.

    A run is a function of `seed`. Saves and restores with state_dict: load this before the model's and the
    optimizer's state, into a model built as at the start.
    """

    def __init__(
        self,
        model: nn.Module | Elastic,
        optimizer: OptimizerOrMany,
        schedule: Schedule | WhenSettled,
        total_steps: int,
        *,
        metric: Metric = "taylor",
        scope: Scope = "slice",
        beta: float = 0.99,
        selection: Selection = "exact",
        cost: CostModel | None = None,
        budget: int | float | None = None,
        max_growth: float | None = None,
        max_width: float | None = None,
        align: int = 1,
        components: int | Mapping[str, int] = 4,
        split: Split = "asymmetric",
        seed: int = 0,
        per_cost: bool = False,
        keep_at_least: int = 0,
        revive: bool = False,
        companions: Sequence[nn.Module] = (),
        observe_every: int = 1,
        storage: Storage = "tight",
        headroom: float = 2.0,
    ):
        require_kinds(model=(model, nn.Module, Elastic), schedule=(schedule, Schedule, WhenSettled))
        check_whole("GrowAndDrop", total_steps=total_steps, observe_every=observe_every, align=align)
        check_whole("GrowAndDrop", 0, keep_at_least=keep_at_least)
        if isinstance(schedule, WhenSettled) and schedule.every < observe_every:
            raise ValueError(
                f"GrowAndDrop: observe_every must be at most {schedule.every}, as often as the schedule compares, "
                f"got {observe_every}"
            )
        storage = "slots" if isinstance(model, Elastic) and model.storage == "slots" else storage
        require_choice("selection", selection, SELECTIONS)
        require_choice("split", split, SPLITS)
        require_choice("storage", storage, ("tight", "slots") if metric != "gate" else ("tight",))
        if storage == "slots" or metric == "gate":
            refuse_wrapper(model, "storage='slots'" if storage == "slots" else "metric='gate'")
        self.schedule, self.total_steps = schedule, total_steps
        self.trigger: Trigger = schedule.trigger(total_steps)
        self.optimizer = optimizer
        self.elastic = model if isinstance(model, Elastic) else Elastic(unwrap(model), components)
        for name, reason in self.elastic.refused.items():
            _log.info("GrowAndDrop: %s keeps its width: %s", name or "the model", reason)
        check_companions(self.elastic, companions, in_place=storage == "slots")
        self._companions = tuple(companions)
        self.costs = Costs.from_dict(first_ranks(measured(cost, self.elastic).to_dict()))
        self.events: list[Event] = []
        self._copies: Copies = {}
        self._selection, self._split, self._seed = selection, split, seed
        self._per_cost, self._keep_at_least, self._revive = per_cost, keep_at_least, revive
        self._caps, self._align = Caps(max_growth, max_width), align
        self._state_follows = False
        self.step = 0  # of the optimizer, the last that due() was told of
        self._unread: list[Plan | SlotPlan] = []
        if storage == "slots" and (self._caps != Caps() or align != 1):
            raise ValueError("GrowAndDrop: max_growth, max_width and align need storage='tight'")
        make_scores = partial(Scores, self.elastic, metric=metric, scope=scope, beta=beta, every=observe_every)
        # the budget is checked before anything changes the model, as gates do
        frozen = self.elastic.frozen() if metric == "gate" else make_scores().frozen()
        self.budget = self._checked_budget(budget, frozen)
        require_optimizers(optimizer, self.elastic)
        if enlarged := storage == "slots" and self.elastic.storage == "tight":
            self.elastic.to_slots(headroom, optimizer, companions)
        self.gates = add_gates(self.elastic, optimizer, self._companions) if metric == "gate" else None
        self.scores = make_scores()
        if enlarged or self.gates is not None:
            retire_wrappers(self.elastic)
        if isinstance(optimizer, ScoringAdamW):
            optimizer.scores = self.scores

    def observe(self) -> None:
        """Takes the gradients as backward left them into the scores. Nothing waits for the device.

        Raises RuntimeError where the optimizer does that itself, ValueError where it keeps what could not follow the
        components at an event.
        """
        if isinstance(self.optimizer, ScoringAdamW):
            raise RuntimeError("GrowAndDrop: ScoringAdamW scores in its step(): call that, and not observe()")
        self._state_follows = self._state_follows or state_follows(self.optimizer, self.elastic)
        self.scores.update()

    def follow(self, companions: Sequence[nn.Module]) -> None:
        """Edits these along from now on, and none of those before. Raises ValueError where they do not fit."""
        check_companions(self.elastic, companions, in_place=self.elastic.storage == "slots")
        self._companions = tuple(companions)

    def due(self, step: int) -> bool:
        """Whether an event falls now, `step` optimizer steps being done; none falls after the last step.

        Raises ValueError for a step after the end of the training.
        """
        if step > self.total_steps:
            raise ValueError(f"GrowAndDrop: step must be at most total_steps, {self.total_steps}, got {step}")
        self.step = step
        if step == self.total_steps and (missed := self.schedule.events - len(self.events)) > 0:
            _log.warning("GrowAndDrop: the training is over, and %d of its events did not fall", missed)
        return step < self.total_steps and self.trigger.due(step, len(self.events), self._ranked)

    @torch.inference_mode(False)
    def adapt(self) -> Event:
        """Drops and grows components of the model, in place: same Parameter objects, same order in the optimizer.

        Raises RuntimeError where no gradient was observed, the training is over, an elastic module was replaced in the
        model or the ranks' plans differ, ValueError where the plan cannot be met; nothing is changed then.
        """
        if self.step >= self.total_steps:
            raise RuntimeError(
                f"GrowAndDrop: an event must fall before the last step, {self.total_steps}, got step {self.step}: "
                "nothing would train what it changes"
            )
        if self.scores.calls == 0:
            raise RuntimeError("GrowAndDrop: there are no scores yet: call observe() after backward, before an event")
        require_in_place(self.elastic)
        if self.elastic.storage == "slots":
            return self._adapt_slots()
        start = time.perf_counter()
        scores = {name: values.tolist() for name, values in averaged(self.scores.values()).items()}
        if not any(any(values) for values in scores.values()):
            raise RuntimeError(
                "GrowAndDrop: all scores are zero: observe() has seen no gradients, or none that is finite (call "
                "it after backward and before zero_grad, on a model that is not frozen)"
            )
        plan = self._plan(scores)
        require_same("GrowAndDrop: the plan", plan.digest())
        apply_plan(plan, self.elastic, self.optimizer, self._companions, self._split)
        retire_wrappers(self.elastic)
        self.scores.follow(plan)
        self._unread.append(plan)
        seconds = time.perf_counter() - start
        event = Event.of(plan, self.elastic, self.step, len(self.events), scores, seconds)
        event = told(event, self.scores, self.scores.frozen())
        self.events.append(event)
        return event

    def health(self) -> dict[str, dict[str, list[float]]]:
        """Cosines of all copies that live with their sources, {module: {"input": [...], "output": [...]}}.

        At 1 a copy is dead weight: it does what its source does. Empty while no event has grown anything.
        """
        self._read_plans()
        return copy_cosines(self.elastic, self._copies)

    def penalty(self, weight: float) -> Tensor:
        """With metric "gate": what the open gates cost, to be added to the loss; `weight` while all are 1.

        Raises RuntimeError for another metric.
        """
        if self.gates is None:
            raise RuntimeError("GrowAndDrop: only metric='gate' has a penalty")
        return self.gates.penalty(weight)

    def state_dict(self) -> dict[str, Any]:
        """Structure, scores, costs, schedule and events; plain values and tensors. All ranks must ask for it."""
        self._read_plans()
        return {
            "structure": self.elastic.state_dict(),
            "scores": self.scores.state_dict(),
            "events": [event.to_dict() for event in self.events],
            "copies": self._copies,
            "costs": self.costs.to_dict(),
            "budget": self.budget,
            "trigger": self.trigger.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives a freshly built model the saved widths: then its state and the optimizer's can be loaded.

        Measured costs, the budget and beta are the saved run's. Raises ValueError, and changes nothing, where the state
        is of another model, or of other costs or another kind of schedule.
        """
        if lacking := self.state_dict().keys() - state.keys():
            raise ValueError(f"GrowAndDrop: state must be of a GrowAndDrop, but it lacks {sorted(lacking)}")
        for what in ("metric", "scope"):
            if state["scores"].get(what) != getattr(self.scores, what):
                raise ValueError(
                    f"GrowAndDrop: {what} must be {getattr(self.scores, what)}, got a state with "
                    f"{state['scores'].get(what)}"
                )
        costs = Costs.from_dict(state["costs"])
        self.costs.require_same(costs)
        trigger = self.schedule.trigger(self.total_steps)
        trigger.load_state_dict(state["trigger"])
        events = [Event.from_dict(event) for event in state["events"]]
        copies = saved_copies(state)
        widths = self.elastic.widths()
        self.elastic.load_state_dict(state["structure"], self._companions)
        if self.elastic.widths() != widths:
            retire_wrappers(self.elastic)
        self.scores.load_state_dict(state["scores"])
        self.trigger, self.events = trigger, events
        self._copies, self._unread = copies, []
        self.costs, self.budget = costs, state["budget"]
        self.step = state["step"]

    def _adapt_slots(self) -> Event:
        """`adapt` in slots storage. The event is read off the device when somebody looks at it."""
        start, scores = time.perf_counter(), averaged(self.scores.values())
        plan = make_slot_plan(
            self.elastic,
            scores,
            self.schedule.fraction_per_event,
            self._selection,
            budget=None if self._selection == "paper" else self.budget,
            costs=self.costs,
            per_cost=self._per_cost,
            keep_at_least=self._keep_at_least,
            revive=self._revive,
            frozen=(frozen := self.scores.frozen()),
            seed=derive_seed(self._seed, "event", len(self.events)),
        )
        if several():
            require_same("GrowAndDrop: the plan", plan.plan.digest())
        apply_slot_plan(plan, self.elastic, self.optimizer, self._companions, self._split)
        self.scores.follow_slots(plan.sources)
        self._unread.append(plan)
        step, index, seconds = self.step, len(self.events), time.perf_counter() - start
        event_of = partial(Event.of, elastic=self.elastic, step=step, index=index, scores=scores, seconds=seconds)
        event = cast(Event, Lazy(lambda: told(event_of(plan.plan), self.scores, frozen)))
        self.events.append(event)
        return event

    def _read_plans(self) -> None:
        """Lets the pairs of copies follow the plans that nobody has read yet."""
        for unread in self._unread:
            plan = unread.plan if isinstance(unread, SlotPlan) else unread
            self._copies = join_copies(follow_copies(self._copies, plan), copies_of(plan))
        self._unread = []

    def _checked_budget(self, budget: int | float | None, frozen: set[str]) -> int:
        """The budget as a cost. Raises ValueError where one event cannot meet it, or the widths are not aligned."""
        counts = self.elastic.counts()
        groups = self._groups({name: [0.0] * n for name, n in counts.items()}, frozen)
        fixed = self.costs.total({name: counts[name] for name in frozen})
        least, most = budget_range(groups, fixed=fixed, keep_at_least=self._keep_at_least, caps=self._caps)
        start = self.costs.total(counts)
        if budget is None:
            return start
        if self._selection == "paper":
            raise ValueError("GrowAndDrop: budget needs selection='exact'; 'paper' follows the published thresholds")
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
            raise ValueError(f"GrowAndDrop: budget must be a positive number, got {budget!r}")
        cost = budget if isinstance(budget, int) else int(budget * start)
        if cost < least:
            raise ValueError(
                f"GrowAndDrop: budget must be at least {least} {self.costs.unit}, which always remain, got {cost}"
            )
        if cost > most and self._caps.max_growth is None:
            raise ValueError(
                f"GrowAndDrop: budget must be at most {most} {self.costs.unit}, what one event can reach, got {cost}"
            )
        return cost

    def _ranked(self) -> list[float]:
        """The scores of all components that can go; waits for the device."""
        frozen, counts = self.scores.frozen(), self.elastic.counts()
        scores = averaged(self.scores.values()).items()
        values = [numbers[: counts[name]] for name, numbers in scores if name not in frozen]
        return torch.cat(values).tolist() if values else []

    def _groups(self, scores: Mapping[str, list[float]], frozen: set[str]) -> list[Group]:
        groups = self.elastic.groups(scores, self.costs, self._align)
        return [group for group in groups if group.name not in frozen]

    def _plan(self, scores: Mapping[str, list[float]]) -> Plan:
        # A module that is frozen has no scores; zeros would say that it is worth nothing.
        frozen, counts = self.scores.frozen(), self.elastic.counts()
        empty = [name for name, count in counts.items() if count == 0 and name not in frozen]
        plan = partial(
            make_plan,
            self._groups(scores, frozen),
            self.schedule.fraction_per_event,
            self._selection,
            fixed=self.costs.total({name: counts[name] for name in frozen}),
            unit=self.costs.unit,
            per_cost=self._per_cost,
            keep_at_least=self._keep_at_least,
            caps=self._caps,
            seed=derive_seed(self._seed, "event", len(self.events)),
        )
        revive = empty if self._revive else ()
        if self._selection == "paper":
            return plan(revive=revive)
        try:
            # the budget, not the present cost: what one event falls short of, the next may spend
            return plan(budget=self.budget, revive=revive)
        except ValueError as error:
            if not self._revive:
                raise
            # After a revival the budget may be out of reach; a training must not end by that.
            _log.warning("GrowAndDrop: this event revives nothing: %s", error)
            return plan(budget=min(self.budget, self.costs.total(counts)))
