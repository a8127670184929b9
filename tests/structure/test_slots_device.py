"""Slots storage: nothing is compiled anew, and nothing waits for the device."""

import copy
import logging

import pytest
import torch
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dmao_kernels.structure import (
    Elastic,
    Scores,
    apply_plan,
    apply_slot_plan,
    given_plan,
    make_plan,
    make_slot_plan,
)
from tests.structure.plain import D
from tests.structure.test_slots import encoder, sample, step, without_dropout

MODELS = {"ours": (encoder, 24), "ordinary": (without_dropout, D)}


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(model, forward, width, steps, selection="exact"):
    """A step and an event in turns: plans and edits as the device alone knows them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    elastic = Elastic(model, storage="slots")
    scores, losses, plans = Scores(elastic), [], []
    for i in range(steps):
        losses.append(step(forward, optimizer, sample(width, i)))
        scores.update()
        optimizer.step()
        plan = make_slot_plan(elastic, scores.values(), 0.3, selection, seed=i, revive=True)
        apply_slot_plan(plan, elastic, optimizer)
        scores.follow_slots(plan.sources)
        plans.append(plan.plan)
    return losses, plans


@pytest.mark.parametrize("name", MODELS)
def test_compiled_once_for_all_events(name, fresh_dynamo):
    make, width = MODELS[name]
    expected, plans = train(model := make(), model, width, 10)
    assert sum(m.changed for plan in plans for m in plan.modules) > 20
    assert name != "ours" or any(len(m.sources) == 0 for plan in plans for m in plan.modules)
    model = make()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses, same = train(model, compiled, width, 10)
    assert counters["stats"]["unique_graphs"] == 1
    assert [plan.sources for plan in same] == [plan.sources for plan in plans]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_tight_storage_is_compiled_anew_once_per_event_and_says_so(fresh_dynamo, caplog):
    model = encoder()
    elastic = Elastic(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with caplog.at_level(logging.INFO, "dmao_kernels"):
        for i in range(3):
            for j in range(2):
                step(compiled, optimizer, sample(24, j))
            assert counters["stats"]["unique_graphs"] == 1 + i
            apply_plan(given_plan({n: (0, *range(c)) for n, c in elastic.counts().items()}, elastic.counts()), elastic)
            assert [r.message for r in caplog.records if "compiled anew" in r.message] == [
                "tight storage: every event changes shapes, so a compiled model is compiled anew after each"
            ]  # from the first event on, and once


class Waits(AssertionError):
    """What the host would wait for."""


class NoDispatchedWait(TorchDispatchMode):
    """Refuses the operators that read values, or whose shapes depend on values."""

    READING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "bincount", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        masks = name.startswith(("index.", "index_put")) and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if masks or name.startswith(self.READING):
            raise Waits(name)
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Refuses the methods that give values to Python, which on the CPU are not dispatched."""

    READING = ("tolist", "numpy", "item", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.READING:
            raise Waits(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("selection", ["exact", "paper"])
@pytest.mark.parametrize("name", MODELS)
def test_score_plan_and_edit_wait_for_nothing(name, selection):
    make, width = MODELS[name]
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    average = copy.deepcopy(model)
    elastic = Elastic(model)
    elastic.to_slots(2.0, optimizer, [average])
    scores = Scores(elastic)
    budget = None if selection == "paper" else elastic.live_parameters()
    plans = []
    for i in range(3):
        step(model, optimizer, sample(width, i))
        with NoReading(), NoDispatchedWait():
            scores.update()
        optimizer.step()
        with NoReading(), NoDispatchedWait():
            plan = make_slot_plan(
                elastic, scores.values(), 0.3, selection, budget=budget, per_cost=True, revive=True, seed=i
            )
            apply_slot_plan(plan, elastic, optimizer, [average], split="asymmetric")
            scores.follow_slots(plan.sources)
        plans.append(plan)
    assert all(plan.plan.dropped and plan.plan.grown for plan in plans)


def test_waiting_is_noticed():
    elastic = Elastic(encoder(), storage="slots")
    scores = Scores(elastic).values()
    plan = make_slot_plan(elastic, scores)
    live = elastic.modules["shaw"].slots
    for wait in (
        elastic.counts,
        lambda: elastic.groups(scores),
        lambda: plan.plan,
        lambda: bool(live.any()),
        lambda: live.nonzero(),
        lambda: scores["shaw"][live],
        lambda: torch.zeros(6).masked_select(live),
    ):
        with NoReading(), NoDispatchedWait(), pytest.raises(Waits):
            wait()


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_of_the_device_does_what_the_plan_of_the_host_does(name):
    make, width = MODELS[name]
    states = []
    for on_device in (False, True):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        elastic = Elastic(model, storage="slots", headroom=8)
        scores = Scores(elastic)
        for i in range(4):
            step(model, optimizer, sample(width, i))
            scores.update()
            optimizer.step()
            if on_device:
                plan = make_slot_plan(elastic, scores.values(), 0.2, "paper" if i % 2 else "exact", seed=i)
                apply_slot_plan(plan, elastic, optimizer)
                scores.follow_slots(plan.sources)
            else:
                fixed = elastic.fixed_parameters()
                groups = elastic.groups(scores.values())
                plan = make_plan(groups, 0.2, "paper" if i % 2 else "exact", fixed=fixed, seed=i)
                apply_plan(plan, elastic, optimizer)
                scores.follow(plan)
        states.append({**model.state_dict(), "scores": scores.ema})
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key
