"""GrowAndDrop with slots storage: the events of tight storage, and nobody reads them before somebody asks."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from dmao.controller import Event, GrowAndDrop
from dmao.schedule import Schedule, WhenSettled
from torch.optim.swa_utils import AveragedModel

from dmao_kernels.structure import ScoringAdamW, SlotPlan
from tests.trainer.test_controller import build, run, setup


@pytest.mark.parametrize("selection", ["exact", "paper"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, ScoringAdamW])
def test_does_what_tight_storage_does(selection, optimizer_class):
    """With halves, since the two draw their noise differently."""
    results = []
    for storage in ("tight", "slots"):
        model, optimizer, controller = setup(
            optimizer_class=optimizer_class, selection=selection, split="halves", storage=storage, headroom=4
        )
        losses, events = run(model, optimizer, controller, range(1, 41))
        results.append((losses, [{**event.to_dict(), "seconds": 0} for event in events], controller.health()))
    (losses, events, health), (same_losses, same_events, same_health) = results
    torch.testing.assert_close(torch.tensor(same_losses), torch.tensor(losses), rtol=1e-4, atol=1e-6)
    assert len(events) == 2
    for event, same in zip(events, same_events, strict=True):
        for name, values in event.pop("scores").items():
            assert same["scores"][name] == pytest.approx(values, rel=1e-3)
        same.pop("scores")
        assert same == event
    assert health.keys() == same_health.keys() != set()


def test_an_event_is_read_when_somebody_looks_at_it(monkeypatch):
    reads = []
    plan = SlotPlan.plan.func
    monkeypatch.setattr(SlotPlan, "plan", property(lambda self: reads.append(1) or plan(self)))
    model, optimizer, controller = setup(storage="slots")
    _, events = run(model, optimizer, controller, range(1, 41))
    assert len(events) == 2
    assert not reads
    assert "dropped" in str(events[0])
    assert events[0].dropped
    assert len(reads) == 1
    event = copy.deepcopy(events[1]).to_dict()
    assert Event.from_dict(json.loads(json.dumps(event))).to_dict() == event
    assert event["parameters"] == controller.elastic.live_parameters()


def test_state_goes_into_a_freshly_built_model():
    model, optimizer, controller = setup(storage="slots")
    run(model, optimizer, controller, range(1, 16))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (controller, model, optimizer)], file)
    losses, events = run(model, optimizer, controller, range(16, 41))

    again, restored, resumed = setup(storage="slots")
    file.seek(0)
    for part, state in zip((resumed, again, restored), torch.load(file, weights_only=False), strict=True):
        part.load_state_dict(state)
    same_losses, same_events = run(again, restored, resumed, range(16, 41))
    assert same_losses == losses
    assert [e.digest for e in same_events] == [e.digest for e in events]
    assert resumed.health() == controller.health()


def test_companions_follow():
    model = build()
    average = AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = Schedule(start=0.3, end=0.6, events=2, fraction=0.4)
    controller = GrowAndDrop(model, optimizer, schedule, 40, storage="slots", companions=[average])
    run(model, optimizer, controller, range(1, 41))
    average.update_parameters(model)
    x = torch.randn(3, 6)
    torch.testing.assert_close(average(x), model(x))


def test_a_budget_that_cannot_be_met_changes_nothing():
    model, optimizer, controller = setup(storage="slots", keep_at_least=1)
    controller.budget = 1
    run(model, optimizer, controller, range(1, 12))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    event = controller.adapt()
    assert (event.dropped, event.grown, event.counts_after) == (0, 0, event.counts_before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"storage": "loose"}, "storage must be tight or slots, got 'loose'"),
        ({"storage": "slots", "metric": "gate"}, "storage must be tight, got 'slots'"),
        ({"storage": "slots", "headroom": 0}, "headroom must be finite and 1 or more, got 0"),
    ],
)
def test_wrong_settings_change_nothing(settings, message):
    model, optimizer, controller = setup()
    before = [p.shape for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        GrowAndDrop(model, optimizer, controller.schedule, 40, **settings)
    assert [p.shape for p in model.parameters()] == before


def test_rankings_settle_as_in_tight_storage():
    """Dead slots have no rank: they would be ties that never move."""
    steps = []
    for storage in ("tight", "slots"):
        schedule = WhenSettled(earliest=4, latest=30, every=2, threshold=0.9, patience=2, events=2, fraction=0.4)
        model, optimizer, controller = setup(schedule, split="halves", storage=storage, headroom=4)
        _, events = run(model, optimizer, controller, range(1, 41))
        assert len(controller._ranked()) == sum(controller.elastic.counts().values())
        steps.append([event.step for event in events])
    assert steps[0] == steps[1]
    assert len(steps[0]) == 2
