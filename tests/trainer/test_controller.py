"""GrowAndDrop beside a loop and a model of the user's own."""

from __future__ import annotations

import copy
import io
import json
from itertools import pairwise

import pytest
import torch
from dmao.controller import Event, GrowAndDrop
from dmao.schedule import Schedule
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dmao_kernels.structure import ParameterCost, ScoringAdamW
from tests.trainer.loop import Mlp, Net, batch, build, observe, run, setup, without_time


def test_own_model_in_ten_lines():
    model, optimizer, controller = setup()
    identities = [id(p) for p in model.parameters()]
    losses, events = run(model, optimizer, controller, range(1, 41))
    assert [event.step for event in events] == [12, 24]
    assert losses[-1] < losses[0] / 2
    assert [id(p) for p in model.parameters()] == identities
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == identities
    start = sum(p.numel() for p in build().parameters())
    for event in events:
        assert start - 4 * 13 < event.parameters <= start
        assert sum(event.counts_after.values()) != 0
        assert event.counts_after != event.counts_before
    assert "dropped" in str(events[0])
    assert "12" in str(events[0])


def test_same_seed_same_run():
    runs = [run(*setup(seed=3), range(1, 41)) for _ in range(2)]
    assert runs[0][0] == runs[1][0]
    assert [e.digest for e in runs[0][1]] == [e.digest for e in runs[1][1]]
    other = run(*setup(seed=4), range(1, 41))
    assert other[0][:12] == runs[0][0][:12]
    assert other[0] != runs[0][0]


def test_state_goes_into_a_freshly_built_model():
    whole = run(*setup(), range(1, 41))
    model, optimizer, controller = setup()
    run(model, optimizer, controller, range(1, 18))
    file = io.BytesIO()
    states = {"controller": controller, "model": model, "optimizer": optimizer}
    torch.save({name: part.state_dict() for name, part in states.items()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = setup()
    for part, name in zip((fresh[2], fresh[0], fresh[1]), states, strict=True):
        part.load_state_dict(saved[name])
    assert fresh[2].events == controller.events
    assert fresh[2].health() == controller.health() != {}
    losses, events = run(*fresh, range(18, 41))
    assert losses == whole[0][17:]
    assert without_time(events) == without_time(whole[1][1:])


def test_events_are_json():
    _, (event, *_) = run(*setup(), range(1, 13))
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_due_catches_up_and_fires_once():
    _, _, controller = setup(Schedule(end=10, events=2))
    assert not any(controller.due(step) for step in range(5))
    observe(controller)
    assert controller.due(7)
    controller.adapt()
    assert not controller.due(7)
    assert controller.due(11)
    controller.adapt()
    assert not controller.due(40)
    assert [event.step for event in controller.events] == [7, 11]


def test_an_event_needs_scores():
    model, _, controller = setup()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"call observe\(\) after backward"):
        controller.adapt()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_budget_that_cannot_be_met_changes_nothing():
    model, optimizer, controller = setup(keep_at_least=1)
    run(model, optimizer, controller, range(1, 6))
    observe(controller)
    before, scores = copy.deepcopy(model.state_dict()), controller.scores.ema.clone()
    for budget in (1, 10 * controller.budget):
        controller.budget = budget
        with pytest.raises(ValueError, match=f"a budget of {budget} parameters cannot be met"):
            controller.adapt()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(controller.scores.ema, scores)
    assert controller.events == []


def test_an_event_needs_gradients():
    model, _, controller = setup()
    observe(controller, learn=False)  # after zero_grad: the gradients are gone
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="all scores are zero"):
        controller.adapt()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_frozen_modules_keep_their_width():
    model, optimizer, controller = setup()
    model.blocks[:2].requires_grad_(False)
    _, events = run(model, optimizer, controller, range(1, 41))
    start = sum(p.numel() for p in build().parameters())
    for event in events:
        assert (event.counts_after["blocks.0"], event.counts_after["blocks.1"]) == (4, 4)
        assert event.dropped > 0
        assert start - 4 * 13 < event.parameters == sum(p.numel() for p in model.parameters()) <= start


@pytest.mark.parametrize("storage", ["tight", "slots"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_part_that_was_not_used_is_told(storage, frozen, caplog):
    model, _, controller = setup(storage=storage)
    model.blocks[4].requires_grad_(not frozen)
    later, model.blocks = model.blocks[4], model.blocks[:4]
    for _ in range(3):
        observe(controller)
    model.blocks.append(later)
    event = controller.adapt()
    assert (event.counts_after["blocks.4"] == 4) == frozen
    told = "at event 1 all scores of blocks.4 are zero, as where no gradient has reached what is scored"
    assert [told in record.message for record in caplog.records] == [True] * (not frozen)


@pytest.mark.parametrize(("metric", "storage"), [("magnitude", "tight"), ("magnitude", "slots"), ("gate", "tight")])
def test_a_frozen_teacher_inside_of_the_model_stays_what_it_is(metric, storage):
    model = build()
    model.teacher = copy.deepcopy(model.blocks).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.blocks.parameters(), lr=1e-2)
    controller = GrowAndDrop(model, optimizer, Schedule(start=2, fraction=0.4), 5, metric=metric, storage=storage)
    x, _ = batch(0)
    expected = [block(x) for block in model.teacher]
    for _ in range(2):
        penalty = controller.penalty(1.0) if metric == "gate" else 0
        (model(x).square().mean() + penalty).backward()
        controller.observe()
        optimizer.step()
    controller.due(2)
    event = controller.adapt()
    assert event.dropped
    assert {event.counts_after[f"teacher.{i}"] for i in range(5)} == {4}
    assert all(torch.equal(block(x), before) for block, before in zip(model.teacher, expected, strict=True))


def test_an_event_in_inference_mode_leaves_a_model_that_trains():
    _, _, controller = setup()
    observe(controller)
    with torch.inference_mode():
        controller.adapt()
    observe(controller)


def test_a_budget_out_of_reach_does_not_end_a_training_that_revives(caplog):
    for revive in (True, False):
        _, _, controller = setup(revive=revive)
        before = controller.elastic.live_parameters()
        controller.budget *= 10  # as after a revival: more than doubling every component can fill
        observe(controller)
        if revive:
            assert before - 4 * 13 < controller.adapt().parameters <= before
            assert "revives nothing" in caplog.text
        else:
            with pytest.raises(ValueError, match="cannot be met"):
                controller.adapt()


def test_observe_every():
    _, _, every = setup(observe_every=3)
    for _ in range(7):
        observe(every)
    assert every.scores.updates == 3


def test_an_optimizer_that_scores(monkeypatch):
    """ScoringAdamW under GrowAndDrop is observe() and then a step: losses, scores and events, to the bit."""
    whole, apart = ({"optimizer_class": ScoringAdamW, "observe_every": 2} for _ in range(2))
    model, optimizer, controller = setup(**whole)
    assert optimizer.scores is controller.scores
    fused = run(model, optimizer, controller, range(1, 41))
    with pytest.raises(RuntimeError, match=r"ScoringAdamW scores in its step\(\): call that, and not observe"):
        controller.observe()
    other, optimizer, observer = setup(**apart)
    optimizer.scores = None
    monkeypatch.setattr(ScoringAdamW, "step", _after(observer.scores.update, ScoringAdamW.step))
    separate = run(other, optimizer, observer, range(1, 41))
    assert fused[0] == separate[0]
    assert without_time(fused[1]) == without_time(separate[1])
    assert len(fused[1]) == 2
    assert torch.equal(controller.scores.ema, observer.scores.ema)
    assert controller.scores.updates == observer.scores.updates == 20


def _after(first, then):
    def call(*arguments):
        first()
        return then(*arguments)

    return call


def test_several_events_do_not_drift():
    torch.manual_seed(0)
    model = Net(hidden=(16, 20, 28, 36, 44))  # a component: 52, 65, 91, 117 or 143 parameters
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = Schedule(start=2, end=38, events=19, fraction=0.9)
    controller = GrowAndDrop(model, optimizer, schedule, total_steps=40)
    start = controller.elastic.live_parameters()
    _, events = run(model, optimizer, controller, range(1, 41))
    sizes = [event.parameters for event in events]
    assert len(events) == 19
    assert start - 52 < min(sizes) <= max(sizes) <= start
    assert any(later > earlier for earlier, later in pairwise(sizes))  # what one event left, another spent


def test_copies_grow_apart_and_health_follows_them():
    model, optimizer, controller = setup(Schedule(start=10))
    run(model, optimizer, controller, range(1, 11))
    at_event = controller.health()
    run(model, optimizer, controller, range(11, 41))
    later = controller.health()
    assert at_event.keys() == later.keys() == controller.events[0].copies.keys()
    for name, sides in at_event.items():
        assert sides["input"] == pytest.approx([1.0] * len(sides["input"]))
        assert max(later[name]["input"]) < 0.9999
    # a user who splits in halves sees inert copies
    model, optimizer, controller = setup(Schedule(start=10), split="halves")
    run(model, optimizer, controller, range(1, 41))
    assert min(value for sides in controller.health().values() for value in sides["input"]) > 0.999


def test_growth_preserves_the_function():
    model, _, controller = setup(Schedule(start=10, fraction=0.01), selection="exact")
    observe(controller)
    x, _ = batch(1)
    before = model.double()(x.double())
    sources = {name: [0, 0, *range(1, n)] for name, n in controller.elastic.counts().items()}
    from dmao_kernels.structure import apply_plan, given_plan

    apply_plan(given_plan(sources, controller.elastic.counts()), controller.elastic)
    torch.testing.assert_close(model(x.double()), before, rtol=1e-9, atol=1e-9)


def test_companions_follow():
    model = build()
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    controller = GrowAndDrop(model, optimizer, Schedule(start=3, fraction=0.4), 40, companions=[average])
    run(model, optimizer, controller, range(1, 10))
    assert [p.shape for p in average.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("metric", ["taylor", "gate"])
def test_a_companion_is_restored_with_the_model(metric):
    def parts():
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        average = AveragedModel(model)
        schedule = Schedule(start=3, fraction=0.4)
        return (
            model,
            optimizer,
            GrowAndDrop(model, optimizer, schedule, 40, metric=metric, companions=[average]),
            average,
        )

    model, optimizer, controller, average = parts()
    run(model, optimizer, controller, range(1, 10))
    average.update_parameters(model)
    *_, restored_controller, restored = parts()
    restored_controller.load_state_dict(controller.state_dict())
    restored.load_state_dict(average.state_dict())
    x, _ = batch(0)
    assert torch.equal(restored(x), model(x))


def test_gates_come_before_the_scheduler():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40)
    with pytest.raises(ValueError, match="make its scheduler afterwards"):
        GrowAndDrop(model, optimizer, Schedule(start=3), 40, metric="gate")


def test_without_an_optimizer():
    model = build()
    controller = GrowAndDrop(model, None, Schedule(start=1), total_steps=4)
    observe(controller)
    assert controller.due(1)
    controller.adapt()
    assert model(batch(0)[0]).isfinite().all()


@pytest.mark.parametrize("storage", ["tight", "slots"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, ScoringAdamW])
def test_another_default_device(storage, kind):
    """What only the host reads is made there, whatever `torch.set_default_device` says."""
    results = []
    for device in ("cpu", "meta"):
        model = build()
        optimizer = kind(model.parameters(), lr=1e-2)
        x, y = batch(0)
        with torch.device(device):
            controller = GrowAndDrop(model, optimizer, Schedule(start=2, events=1), 4, storage=storage)
            for step in (1, 2):
                (model(x) - y).square().mean().backward()
                if kind is torch.optim.AdamW:
                    controller.observe()
                optimizer.step()
                if controller.due(step):
                    controller.adapt()
        results.append(model.state_dict())
    assert len(controller.events) == 1
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_gates_join_an_optimizer_that_knows_names():
    model = build()
    optimizer = torch.optim.AdamW(model.named_parameters())
    controller = GrowAndDrop(model, optimizer, Schedule(start=3), 4, metric="gate")
    names = optimizer.param_groups[1]["param_names"]
    gates = zip(names, controller.gates.parameters(), strict=True)
    assert all(model.get_parameter(name) is gate for name, gate in gates)


def test_gates_join_the_optimizer_without_weight_decay():
    model, optimizer, controller = setup(metric="gate")
    assert len(optimizer.param_groups) == 2
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    assert controller.penalty(0.5).item() == pytest.approx(0.5)
    _, events = run(model, optimizer, controller, range(1, 41))
    assert len(events) == 2
    with pytest.raises(RuntimeError, match="only metric='gate'"):
        setup()[2].penalty(1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observe_every": 0}, "observe_every must be a whole number from 1, got 0"),
        ({"observe_every": 2.5}, "observe_every must be a whole number from 1, got 2.5"),
        ({"keep_at_least": -1}, "keep_at_least must be a whole number from 0, got -1"),
        ({"companions": [nn.Linear(2, 2)]}, r"a companion \(Linear\) has no module blocks.0"),
        ({"companions": [{}]}, "a companion mapping has no blocks.0.up.weight"),
        ({"metric": "luck"}, "metric must be"),
        ({"beta": 1.0}, "beta must be"),
        ({"schedule": Schedule(start=50)}, "after step 1 to 39 of 40"),
        ({"split": "thirds"}, "split must be"),
        ({"selection": "best"}, "selection must be"),
    ],
)
def test_wrong_settings_fail_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        setup(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": Net}, "model must be of class Module or Elastic, got the class Net"),
        ({"optimizer": build().parameters()}, "optimizer must be of class Optimizer or Sequence, got a generator"),
        ({"optimizer": list(build().parameters())}, "optimizer must be of class Optimizer, got a Parameter"),
        ({"schedule": 0.4}, "schedule must be of class Schedule or WhenSettled, got a float"),
        ({"schedule": Schedule}, "schedule must be of class Schedule or WhenSettled, got the class Schedule"),
        ({"components": 4.0}, "components must be a whole number or a mapping to such, got 4.0"),
        ({"companions": build()}, r"companions must be a list such as \[average\], got a Net"),
        ({"cost": "latency"}, "cost must be .* object with a method measure, got 'latency'"),
        ({"cost": ParameterCost}, "cost must be .*, got <class '.*ParameterCost'>"),
        ({"companions": ["blocks"]}, "companions must be modules, or mappings from names to tensors, got a str"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(arguments, message):
    usual = {"model": build(), "optimizer": None, "schedule": Schedule(start=1), "total_steps": 4}
    with pytest.raises(TypeError, match=message):
        GrowAndDrop(**usual | arguments)


def test_an_optimizer_of_another_model_is_refused():
    other = torch.optim.SGD(build().parameters())
    with pytest.raises(ValueError, match="optimizer must hold parameters of the model's elastic modules"):
        GrowAndDrop(build(), other, Schedule(start=1), total_steps=4)


def test_several_optimizers_follow(caplog):
    model = build()
    weights, biases = ([p for p in model.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False))
    optimizers = [torch.optim.AdamW(weights, lr=0.01), torch.optim.SGD(biases, lr=0.01, momentum=0.9)]
    controller = GrowAndDrop(model, optimizers, Schedule(start=2, fraction=0.4), total_steps=4)
    for step in range(1, 4):
        observe(controller)
        for optimizer in optimizers:
            optimizer.step()
        if controller.due(step):
            assert controller.adapt().dropped
    assert not caplog.text
    GrowAndDrop(model, optimizers[0], Schedule(start=1), total_steps=4)
    assert "holds 5 trainable parameters of elastic modules less than there are, as blocks.0.up.bias" in caplog.text
    with pytest.raises(ValueError, match="metric='gate' adds parameters to the optimizer: give one, not several"):
        GrowAndDrop(model, optimizers, Schedule(start=1), total_steps=4, metric="gate")
    with pytest.raises(ValueError, match="adds gates to companions: they must be modules, got a mapping"):
        GrowAndDrop(model, None, Schedule(start=1), 4, metric="gate", companions=[dict(model.state_dict())])


@pytest.mark.parametrize(("name", "storage"), [("Adafactor", "slots"), ("LBFGS", "tight")])
def test_an_optimizer_that_cannot_follow_is_told_at_the_first_steps(name, storage):
    """As soon as it keeps anything, and not hours later at the event."""
    model = build()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2)
    controller = GrowAndDrop(model, optimizer, Schedule(start=0.5), total_steps=1000, storage=storage)
    observe(controller)
    optimizer.step(lambda: model(batch(1)[0]).square().mean().detach())
    with pytest.raises(ValueError, match=r"optimizer state 'row_var' must|LBFGS keeps '\w+' over all parameters"):
        observe(controller)


def test_an_average_on_another_device_is_refused_in_slots_storage():
    model = build()
    average = copy.deepcopy(model).to("meta")
    with pytest.raises(ValueError, match=r"companions must be on the model's device in slots storage, cpu, got .*meta"):
        GrowAndDrop(model, None, Schedule(start=1), 4, companions=[average], storage="slots")


@pytest.mark.parametrize("storage", ["tight", "slots"])
def test_a_module_that_was_replaced_is_told_before_anything_changes(storage):
    model, _, controller = setup(storage=storage)
    observe(controller)
    model.blocks[1] = Mlp()
    with pytest.raises(RuntimeError, match=r"blocks\.1 must be the Mlp .*, got another Mlp: make a new controller"):
        controller.adapt()
    model.blocks = model.blocks[:1]
    with pytest.raises(RuntimeError, match=r"blocks\.1 must be the Mlp .*, got none: make a new controller"):
        controller.adapt()
    assert not controller.events
    assert controller.elastic.edits == 0


def test_a_module_may_be_wrapped_and_stand_in_several_places():
    model, _, controller = setup()
    observe(controller)
    model.blocks[0] = torch.compile(model.blocks[0])
    model.blocks[1] = nn.Sequential(model.blocks[1])
    model.blocks.append(model.blocks[2])
    controller.adapt()


def test_a_compiled_model_is_known_by_its_own_names():
    model = build()
    average, compiled = AveragedModel(model), torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = GrowAndDrop(compiled, optimizer, Schedule(start=2, fraction=0.4), 40, companions=[average])
    _, events = run(compiled, optimizer, controller, range(1, 4))
    assert len(events) == 1
    assert list(controller.elastic.modules) == [f"blocks.{i}" for i in range(5)]
    average.update_parameters(model)
