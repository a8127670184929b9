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
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dmao.distributed import averaged, require_same, unwrap
from dmao.randomness import derive_seed
from dmao.schedule import Schedule
from dmao_kernels.structure import (
    SELECTIONS,
    SPLITS,
    ComponentGates,
    Elastic,
    Metric,
    Pairs,
    Plan,
    Scope,
    Scores,
    ScoringAdamW,
    Selection,
    Split,
    apply_plan,
    copy_cosines,
    follow_copies,
    make_plan,
)

_log = logging.getLogger(__name__)

Copies = dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Event:
    """What one event did; plain data.

    step: optimizer steps done before it.  index: 0 for the first event.
    counts_before, counts_after: components of every module.  scores: of the components before, as the plan
        saw them.
    dropped, grown: numbers of components.  removed, added: parameters that went and that came with them.
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
        return cls(**{**values, "copies": _join({}, values["copies"])})

    def __str__(self) -> str:
        return (
            f"event {self.index + 1} after step {self.step}: {self.dropped} components dropped, "
            f"{self.grown} grown, {self.parameters_before:,} -> {self.parameters:,} parameters, "
            f"{1000 * self.seconds:.0f} ms"
        )


class GrowAndDrop:
    """Makes the widths of `model`'s elastic modules part of its training.

    model: modules that carry `component_layout`, or whose class is known
        (dmao_kernels.structure.register_family). They return what they contribute, and residual sums stand
        outside of them: a module that lost all its components returns zeros.
    optimizer: its moments follow the components; None where there is none to follow.
    schedule, total_steps: when the events fall.  Modules whose scored parameters are all frozen keep their width.
    metric: taylor, gradient, magnitude, signed, or gate (a learnable gate per component, added to the
        optimizer).
    scope: "slice" scores the published slice, "component" all that a component owns.
    beta: of the moving average of scores.
    selection: "exact" never exceeds the parameters that the model starts with; "paper" selects as published.
    components: per module, for known classes that do not tell their own number.
    split: how a copy shares its source's output weights.
    per_cost, keep_at_least: see make_plan.  revive: every event gives modules that are empty one fresh
        component.
    companions: models of the same structure edited along, for example an average of the weights; loading a state
        gives them its widths, metric "gate" gives them gates.
    observe_every: score every n-th step only.

    A ScoringAdamW scores in its own step(): then nobody calls observe().

    On several processes (torch.distributed), scores are averaged over the ranks at an event and the plans compared.
    `model` may be wrapped in DistributedDataParallel; after an event, go on with `distributed.rewrap` of it.

    A run is a function of `seed`. Saves and restores with state_dict: load this before the model's and the
    optimizer's state, into a model built as at the start.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        schedule: Schedule,
        total_steps: int,
        *,
        metric: Metric = "taylor",
        scope: Scope = "slice",
        beta: float = 0.99,
        selection: Selection = "exact",
        components: int | Mapping[str, int] = 4,
        split: Split = "asymmetric",
        seed: int = 0,
        per_cost: bool = False,
        keep_at_least: int = 0,
        revive: bool = False,
        companions: Sequence[nn.Module] = (),
        observe_every: int = 1,
    ):
        if observe_every < 1:
            raise ValueError(f"GrowAndDrop: observe_every must be 1 or more, got {observe_every}")
        _require_choice("selection", selection, SELECTIONS)
        _require_choice("split", split, SPLITS)
        self.schedule = schedule
        self.event_steps = schedule.steps(total_steps)
        self.optimizer = optimizer
        self.elastic = Elastic(unwrap(model), components)
        self.gates = _add_gates(self.elastic, optimizer, companions) if metric == "gate" else None
        self.scores = Scores(self.elastic, metric=metric, scope=scope, beta=beta, every=observe_every)
        if isinstance(optimizer, ScoringAdamW):
            optimizer.scores = self.scores
        self.events: list[Event] = []
        self._copies: Copies = {}
        self.budget = self.elastic.live_parameters()
        self._selection = selection
        self._split = split
        self._seed = seed
        self._per_cost, self._keep_at_least, self._revive = per_cost, keep_at_least, revive
        self._companions = tuple(companions)
        self._step = 0

    def observe(self) -> None:
        """Takes the gradients as backward left them into the scores. Nothing waits for the device.

        Raises RuntimeError where the optimizer does that itself.
        """
        if isinstance(self.optimizer, ScoringAdamW):
            raise RuntimeError("GrowAndDrop: ScoringAdamW scores in its step(): call that, and not observe()")
        self.scores.update()

    def due(self, step: int) -> bool:
        """Whether an event falls now, `step` optimizer steps being done."""
        self._step = step
        return len(self.events) < len(self.event_steps) and step >= self.event_steps[len(self.events)]

    @torch.inference_mode(False)
    def adapt(self) -> Event:
        """Drops and grows components of the model, in place: same Parameter objects, same order in the optimizer.

        Raises RuntimeError where no gradient was observed or the ranks' plans differ, ValueError where the plan
        cannot be met; nothing is changed then.
        """
        if self.scores.calls == 0:
            raise RuntimeError("GrowAndDrop: call observe() after backward, before an event: there are no scores yet")
        start = time.perf_counter()
        before, parameters_before = self.elastic.counts(), self.elastic.live_parameters()
        scores = {name: values.tolist() for name, values in averaged(self.scores.values()).items()}
        if not any(any(values) for values in scores.values()):
            raise RuntimeError(
                "GrowAndDrop: all scores are zero: observe() has seen no gradients (call it after backward and before "
                "zero_grad, on a model that is not frozen)"
            )
        plan = self._plan(scores)
        require_same("GrowAndDrop: the plan", plan.digest())
        report = apply_plan(
            plan,
            self.elastic,
            optimizer=self.optimizer,
            companions=self._companions,
            split=self._split,
        )
        self.scores.follow(plan)
        self._copies = _join(follow_copies(self._copies, plan), report.copies)
        event = Event(
            step=self._step,
            index=len(self.events),
            counts_before=before,
            counts_after=self.elastic.counts(),
            scores=scores,
            dropped=plan.dropped,
            grown=plan.grown,
            removed=plan.removed,
            added=plan.added,
            parameters_before=parameters_before,
            parameters=self.elastic.live_parameters(),
            seconds=time.perf_counter() - start,
            digest=plan.digest(),
            copies=_join({}, report.copies),
        )
        self.events.append(event)
        return event

    def health(self) -> dict[str, dict[str, list[float]]]:
        """Cosines of all copies that live with their sources, {module: {"input": [...], "output": [...]}}.

        At 1 a copy is dead weight: it does what its source does. Empty while no event has grown anything.
        """
        return copy_cosines(self.elastic, self._copies)

    def penalty(self, weight: float) -> Tensor:
        """With metric "gate": what the open gates cost, to be added to the loss; `weight` while all are 1.

        Raises RuntimeError for another metric.
        """
        if self.gates is None:
            raise RuntimeError("GrowAndDrop: only metric='gate' has a penalty")
        return self.gates.penalty(weight)

    def state_dict(self) -> dict[str, Any]:
        """Structure, scores and events; plain values and tensors."""
        return {
            "structure": self.elastic.state_dict(),
            "scores": self.scores.state_dict(),
            "events": [event.to_dict() for event in self.events],
            "copies": self._copies,
            "budget": self.budget,
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives a freshly built model the saved widths: then its state and the optimizer's can be loaded."""
        self.elastic.load_state_dict(state["structure"], self._companions)
        self.scores.load_state_dict(state["scores"])
        self.events = [Event.from_dict(event) for event in state["events"]]
        self._copies = _join({}, state["copies"])
        self.budget = state["budget"]
        self._step = state["step"]

    def _plan(self, scores: Mapping[str, list[float]]) -> Plan:
        # A module that is frozen has no scores; zeros would say that it is worth nothing.
        frozen = self.scores.frozen()
        empty = [name for name, count in self.elastic.counts().items() if count == 0 and name not in frozen]
        plan = partial(
            make_plan,
            [group for group in self.elastic.groups(scores) if group.name not in frozen],
            self.schedule.fraction_per_event,
            self._selection,
            fixed=self.elastic.fixed_parameters() + sum(self.elastic.modules[name].parameters for name in frozen),
            per_cost=self._per_cost,
            keep_at_least=self._keep_at_least,
            seed=derive_seed(self._seed, "event", len(self.events)),
        )
        revive = empty if self._revive else ()
        if self._selection == "paper":
            return plan(revive=revive)
        try:
            # the size at the start, not the present one: what one event falls short of, the next may spend
            return plan(budget=self.budget, revive=revive)
        except ValueError as error:
            if not self._revive:
                raise
            # After a revival the budget may be out of reach; a training must not end by that.
            _log.warning("GrowAndDrop: this event revives nothing and keeps the present size: %s", error)
            return plan()


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"GrowAndDrop: {name} must be {' or '.join(choices)}, got {value!r}")


def _join(first: Pairs, second: Pairs) -> Copies:
    return {
        name: [(source, copy) for source, copy in (*first.get(name, ()), *second.get(name, ()))]
        for name in {**first, **second}
    }


def _add_gates(elastic: Elastic, optimizer: Optimizer | None, companions: Sequence[nn.Module]) -> ComponentGates:
    if optimizer is not None and any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError("GrowAndDrop: metric='gate' adds parameters to the optimizer: make its scheduler afterwards")
    gates = ComponentGates(elastic, companions)
    if optimizer is not None:
        # weight decay would pull every gate, and with it the module's output, towards nothing
        optimizer.add_param_group({"params": list(gates.parameters()), "weight_decay": 0.0})
    return gates
