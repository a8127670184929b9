"""GrowAndDrop under budgets in several units, caps and alignment; what it refuses before anything is changed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from dmao.controller import Event, GrowAndDrop
from dmao.schedule import Schedule

from dmao_kernels.structure import Costs, Elastic, LatencyCost, MacCost, apply_plan, given_plan
from tests.trainer.loop import Net, batch, build, observe, run, setup, without_time

NAMES = [f"blocks.{i}" for i in range(5)]
START = 5 * (16 * 13 + 6)  # parameters: five blocks of four components of 52, and an output bias of 6


def nanoseconds(dear=700):
    """As a calibration might leave them: the last module is dear."""
    own = dict.fromkeys(NAMES[:-1], 100) | {NAMES[-1]: dear}
    return Costs("ns", own, dict.fromkeys(NAMES, 40), 1000, measured=True)


@pytest.mark.parametrize("cost", [MacCost(10, 2), nanoseconds()])
def test_a_budget_in_another_unit_is_kept(cost):
    model, optimizer, controller = setup(cost=cost)
    start = controller.costs.total(controller.elastic.counts())
    _, events = run(model, optimizer, controller, range(1, 41))
    assert len(events) == 2
    for event in events:
        assert event.unit == cost.unit
        assert event.cost == controller.costs.total(event.counts_after)
        assert event.cost_before == controller.costs.total(event.counts_before)
        assert start - min(controller.costs.own.values()) < event.cost <= start
        assert event.dropped > 0
    assert events[-1].parameters == sum(p.numel() for p in model.parameters() if p.numel() > 6) + 6 * sum(
        n > 0 for n in events[-1].counts_after.values()
    )
    assert f"-> {events[-1].cost:,} {cost.unit}" in str(events[-1])


def test_events_without_a_unit_of_their_own_say_parameters():
    _, (event, *_) = run(*setup(), range(1, 13))
    assert (event.unit, event.cost_before, event.cost) == ("parameters", START, event.parameters)
    assert str(event).count("->") == 1


def test_the_unit_decides_what_is_grown():
    """Equal scores per component: where the last module is dear, fewer of its components pay for others."""
    counts = {}
    for name, cost in (("parameters", None), ("ns", nanoseconds(dear=10_000))):
        _, _, controller = setup(Schedule(start=1, fraction=0.4), cost=cost, per_cost=True)
        observe(controller)
        counts[name] = controller.adapt().counts_after
    assert counts["ns"]["blocks.4"] < counts["parameters"]["blocks.4"]


@pytest.mark.parametrize(
    ("budget", "expected"), [(None, START), (1.0, START), (0.75, START * 3 // 4), (1.5, START * 3 // 2), (700, 700)]
)
def test_budgets(budget, expected):
    model, optimizer, controller = setup(budget=budget)
    assert controller.budget == expected
    _, events = run(model, optimizer, controller, range(1, 41))
    for event in events:
        assert expected - 52 < event.parameters <= expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget must be a positive number, got 0"),
        ({"budget": -0.5}, "budget must be a positive number, got -0.5"),
        ({"budget": math.nan}, "budget must be a positive number, got nan"),
        ({"budget": math.inf}, "budget must be a positive number, got inf"),
        ({"budget": True}, "budget must be a positive number, got True"),
        ({"budget": "0.9x"}, "budget must be a positive number, got '0.9x'"),
        ({"budget": 100, "keep_at_least": 1}, "budget must be at least 290 parameters, which always remain, got 100"),
        ({"budget": 999, "cost": nanoseconds()}, "budget must be at least 1000 ns, which always remain, got 999"),
        ({"budget": 2.5}, "budget must be at most 2110 parameters, what one event can reach, got 2675"),
        ({"budget": 1.6, "max_width": 1.5}, "budget must be at most 1590 parameters, what one event can reach, got"),
        ({"budget": 0.9, "selection": "paper"}, "budget needs selection='exact'"),
        ({"max_growth": 1.5}, r"max_growth must be in \(0, 1\], got 1.5"),
        ({"max_width": 0.9}, "max_width must be finite and 1 or more, got 0.9"),
        ({"align": 0}, "align must be a whole number from 1, got 0"),
        ({"align": 32}, "blocks.0: align=32 needs a multiple of 8 components, got 4"),
        ({"cost": Costs("ns", {"a": 1}, {"a": 0})}, r"Costs: the modules must be \['blocks.0', .*\], got \['a'\]"),
        ({"cost": LatencyCost(lambda model: None)}, "example must call blocks.0, but it was not called"),
    ],
)
def test_wrong_settings_fail_before_anything_is_changed(settings, message):
    with pytest.raises(ValueError, match=message):
        setup(**settings)


def test_gates_come_after_the_budget():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="budget must be at most"):
        GrowAndDrop(model, optimizer, Schedule(start=1), 4, metric="gate", budget=9.0)
    assert model.state_dict().keys() == build().state_dict().keys()
    assert len(optimizer.param_groups) == 1


def test_frozen_modules_count_as_fixed():
    model = build()
    model.blocks[:4].requires_grad_(False)
    with pytest.raises(ValueError, match=f"budget must be at least {4 * 214} parameters, which always remain, got 800"):
        GrowAndDrop(model, None, Schedule(start=1), 4, budget=800)


def test_caps_and_alignment():
    schedule = Schedule(start=2, end=38, events=12, fraction=0.9)
    model, optimizer, controller = setup(schedule, max_growth=0.15, max_width=1.5, align=8, revive=True)
    _, events = run(model, optimizer, controller, range(1, 41))
    assert len(events) == 12
    for event in events:
        assert event.parameters <= START
        added = event.grown + sum(
            event.counts_after[name] for name in NAMES if event.counts_before[name] == 0 < event.counts_after[name]
        )
        assert 0 <= added <= math.ceil(0.15 * sum(event.counts_before.values()))
        for name in NAMES:
            assert event.counts_after[name] % 2 == 0  # two components of 4 units
            assert event.counts_after[name] <= 6
    assert sum(event.grown for event in events) > 0


@pytest.mark.parametrize(("budget", "fraction"), [(0.5, 0.01), (0.9, 0.3), (1.5, 0.01)])
def test_the_first_event_goes_to_the_budget(budget, fraction):
    """However small the fraction, and however many events are to come (docs/METHOD.md, section 8)."""
    schedule = Schedule(start=4, end=12, events=3, fraction=fraction)
    model, optimizer, controller = setup(budget=budget, schedule=schedule)
    _, events = run(model, optimizer, controller, range(1, 21))
    assert len(events) == 3
    assert all(0 <= controller.budget - event.cost < 52 for event in events)


def test_growth_to_a_larger_budget_in_small_events():
    schedule = Schedule(start=2, end=38, events=12, fraction=0.3)
    model, optimizer, controller = setup(schedule, budget=2.2, max_growth=0.1)
    sizes = [event.parameters for event in run(model, optimizer, controller, range(1, 41))[1]]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1.2 * START
    assert controller.budget - 52 < sizes[-1] <= controller.budget


@pytest.mark.parametrize("cost", [MacCost(10), nanoseconds(), None])
def test_empty_modules_come_back_under_every_budget(cost):
    _, _, controller = setup(Schedule(start=1, end=3, events=2, fraction=0.5), cost=cost, revive=True)
    start = controller.costs.total(controller.elastic.counts())
    for step in (1, 3):
        observe(controller)
        assert controller.due(step)
        if step == 1:
            controller.scores.ema[:4] = 0.0  # the first module goes
        event = controller.adapt()
        assert event.cost <= start
        assert event.counts_after["blocks.0"] == (0 if step == 1 else 1)


def test_a_revival_out_of_reach_still_keeps_the_budget(caplog):
    """The model is larger than its budget: where a revival cannot be paid, the event shrinks it all the same."""
    _, _, controller = setup(Schedule(start=1, fraction=0.1), keep_at_least=1, revive=True)
    plan = given_plan({"blocks.0": ()}, controller.elastic.counts())
    apply_plan(plan, controller.elastic)
    controller.scores.follow(plan)
    observe(controller)
    controller.budget = 280  # of five modules with one component each, 290
    event = controller.adapt()
    assert (event.parameters_before, event.parameters) == (4 * 214, 4 * 58)
    assert "revives nothing" in caplog.text


def test_events_after_the_end_of_training(caplog):
    model, _, controller = setup(Schedule(start=30))
    observe(controller)
    assert not controller.due(29)
    assert not controller.due(40)  # the last step: nothing would train what the event changes
    assert "the training is over, and 1 of its events did not fall" in caplog.text
    caplog.clear()
    controller.events += [None] * 2  # more than the schedule has: adapt() was called out of turn
    assert not controller.due(40)
    assert not caplog.text
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"an event must fall before the last step, 40, got step 40"):
        controller.adapt()
    with pytest.raises(ValueError, match="step must be at most total_steps, 40, got 41"):
        controller.due(41)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"must fall after step 1 to 39 of 40, got \[50\]"):
        setup(Schedule(start=50))


class Recalibrated:
    """A cost model that finds other numbers whenever it measures, as clocks do."""

    unit = "ns"

    def __init__(self):
        self.measured = 0

    def measure(self, elastic: Elastic) -> Costs:
        self.measured += 1
        return nanoseconds(dear=100 + 997 * self.measured)


def test_a_resumed_run_plans_with_the_saved_calibration():
    whole = run(*setup(cost=nanoseconds(1097), budget=0.9), range(1, 41))
    model, optimizer, controller = setup(cost=(cost := Recalibrated()), budget=0.9)
    run(model, optimizer, controller, range(1, 18))
    fresh = setup(cost=cost, budget=0.9)
    assert fresh[2].costs != controller.costs
    assert fresh[2].budget != controller.budget
    for part, other in zip((fresh[2], fresh[0], fresh[1]), (controller, model, optimizer), strict=True):
        part.load_state_dict(other.state_dict())
    assert (fresh[2].costs, fresh[2].budget) == (controller.costs, controller.budget)
    losses, events = run(*fresh, range(18, 41))
    assert losses == whole[0][17:]
    assert without_time(events) == without_time(whole[1][1:])


def _net(hidden):
    torch.manual_seed(0)
    model = Net(hidden=hidden)
    return GrowAndDrop(model, None, Schedule(start=10), 40)


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        (lambda: setup(cost=MacCost(10))[2], "cost must be in MACs, got a state with a budget in parameters"),
        (lambda: _net((16, 16, 16, 16, 20)), "blocks.4: the own cost must be 65 parameters, got 52"),
        (lambda: _net((16, 16)), r"cost must be of \['blocks.0', 'blocks.1'\], got"),
        (lambda: setup(metric="gradient")[2], "metric must be gradient, got a state with taylor"),
        (lambda: setup(scope="component")[2], "scope must be component, got a state with slice"),
    ],
)
def test_a_checkpoint_of_another_model_changes_nothing(fresh, message):
    model, optimizer, controller = setup()
    run(model, optimizer, controller, range(1, 21))
    other = fresh()
    before, weights = repr(other.state_dict()), copy.deepcopy(other.elastic.model.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(controller.state_dict())
    assert repr(other.state_dict()) == before
    torch.testing.assert_close(other.elastic.model.state_dict(), weights, rtol=0, atol=0)


def test_macs_at_another_length_are_another_budget():
    with pytest.raises(ValueError, match=r"blocks\.0: the own cost must be 480 MACs, got 960"):
        setup(cost=MacCost(10))[2].load_state_dict(setup(cost=MacCost(20))[2].state_dict())


def test_what_is_no_state():
    with pytest.raises(ValueError, match=r"state must be of a GrowAndDrop, but it lacks \['budget', 'copies', 'costs'"):
        setup()[2].load_state_dict({"structure": {}, "scores": {}, "events": [], "step": 1})


def test_events_are_data():
    _, (event, *_) = run(*setup(cost=nanoseconds()), range(1, 13))
    assert Event.from_dict(event.to_dict()) == event


def test_a_real_calibration_trains():
    def build_wide():
        torch.manual_seed(0)
        return Net(hidden=(4096, 4096))

    model = build_wide()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    frames = torch.randn(256, 6)
    controller = GrowAndDrop(model, optimizer, Schedule(start=1), 4, cost=LatencyCost(frames), budget=0.8)
    (event,) = run(model, optimizer, controller, range(1, 3))[1]
    assert event.unit == "ns"
    assert event.cost <= controller.budget < event.cost_before
    assert model(batch(0)[0]).isfinite().all()
