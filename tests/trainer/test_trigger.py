"""When events fall: rank correlation, and events that wait until the ranking has settled."""

from __future__ import annotations

import json
import math

import pytest
import torch
from dmao.controller import GrowAndDrop
from dmao.schedule import Schedule, WhenSettled
from dmao.trigger import FixedSteps, SettledRanking, rank_correlation
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.loop import build, run, setup, without_time


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_rank_correlation_is_spearmans(first, rng):
    second = [rng.randint(0, 5) for _ in first]
    ranks = [_mean_ranks(values) for values in (first, second)]
    expected = torch.corrcoef(torch.tensor(ranks, dtype=torch.float64))[0, 1].item()
    found = rank_correlation(first, second)
    assert found == pytest.approx(0.0 if math.isnan(expected) else expected, abs=1e-12)
    assert rank_correlation(second, first) == found
    assert rank_correlation([3 * x**3 for x in first], second) == found  # the order alone counts


def _mean_ranks(values):
    return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3, 4], [2, 3, 5, 9]) == 1.0
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == 0.5
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == rank_correlation([], []) == 0.0
    with pytest.raises(ValueError, match="both must have as many values, got 1 and 2"):
        rank_correlation([1], [1, 2])


class Script:
    """Rankings that are asked for one after the other: settled ones repeat."""

    def __init__(self, text):
        self.text, self.asked = text, 0

    def __call__(self):
        self.asked += 1
        turn = self.text[min(self.asked, len(self.text)) - 1]
        return [1.0, 2.0, 3.0] if turn == "a" else [3.0, 2.0, 1.0]


def fires(trigger, script, steps, done=0):
    """The steps at which events fall, each being held at once."""
    found = []
    for step in steps:
        if trigger.due(step, done, script):
            found.append(step)
            done += 1
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaa", 15),  # checks after 5, 10, 15: two agreements
        ("abaaa", 25),  # the third of a row
        ("ababababababab", 40),  # never: at the deadline
    ],
)
def test_an_event_falls_once_the_ranking_has_settled(text, expected):
    script = Script(text)
    assert fires(SettledRanking(1, [40], every=5, threshold=0.9, patience=2), script, range(1, 60)) == [expected]
    assert script.asked == min(expected // 5, 8)  # asked for at the checks alone, and no more after the last event


def test_not_before_the_earliest_step():
    assert fires(SettledRanking(23, [40], 5, 0.9, 2), Script("a"), range(1, 60)) == [23]


def test_every_event_counts_anew_and_has_its_deadline():
    trigger = SettledRanking(1, [30, 60, 90], every=5, threshold=0.9, patience=2)
    assert fires(trigger, Script("aaa" + "ababababab" + "a" * 9), range(1, 99)) == [15, 60, 80]


def test_asking_twice_and_skipping_steps_change_nothing():
    once, twice = (SettledRanking(1, [40], 5, 0.9, 2) for _ in range(2))
    script = Script("aaaa")
    for step in range(1, 15):
        assert not twice.due(step, 0, script)
        assert not twice.due(step, 0, script)
    assert script.asked == 2
    assert twice.due(15, 0, script)
    assert twice.due(15, 0, script)
    assert fires(once, Script("aaaa"), (4, 7, 21, 22, 26)) == [26]  # checks at 7, 21 and 26


def test_state_goes_on():
    for stop in range(1, 40):
        script = Script("abbaabbbaaab")
        trigger = SettledRanking(1, [38], 4, 0.9, 2)
        before = fires(trigger, script, range(1, stop + 1))
        other = SettledRanking(1, [38], 4, 0.9, 2)
        other.load_state_dict(json.loads(json.dumps(trigger.state_dict())))
        rest = fires(other, script, range(stop + 1, 60), len(before))
        assert before + rest == [32]


def test_state_of_another_kind_of_schedule():
    settled, fixed = SettledRanking(1, [30], 5, 0.9, 2), FixedSteps([3])
    for trigger, other in ((settled, fixed), (fixed, settled)):
        with pytest.raises(ValueError, match="it is of another kind of schedule"):
            trigger.load_state_dict(other.state_dict())


def test_deadlines():
    schedule = WhenSettled(earliest=0.2, latest=0.5, events=3, fraction=0.3)
    assert schedule.steps(1000) == (300, 400, 500)
    assert schedule.fraction_per_event == pytest.approx(0.1)
    assert WhenSettled(earliest=7, latest=9).steps(10) == (9,)
    assert WhenSettled(earliest=0.25, latest=0.5).trigger(10).earliest == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"earliest": None}, "WhenSettled: earliest must be a share of all steps or a step, got None"),
        ({"earliest": 0}, "WhenSettled: earliest as a step must be 1 or more, got 0"),
        ({"latest": 1.5}, "WhenSettled: latest as a share of all steps must lie between 0 and 1, got 1.5"),
        ({"every": 0}, "WhenSettled: every must be a whole number from 1, got 0"),
        ({"patience": True}, "WhenSettled: patience must be a whole number from 1, got True"),
        ({"threshold": 1.0}, r"WhenSettled: threshold must lie in \[-1, 1\), got 1.0"),
        ({"fraction": 0}, "WhenSettled: fraction must lie between 0 and 1, got 0"),
        ({"events": 0}, "WhenSettled: events must be a whole number from 1, got 0"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        WhenSettled(**{"earliest": 0.2, "latest": 0.5, **arguments})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (WhenSettled(30, 20), "earliest must not be after latest, got 30 and 20"),
        (WhenSettled(10, 40), r"events must fall after step 1 to 39 of 40, got \[40\]"),
        (WhenSettled(10, 11, events=3), "3 events do not fit between step 10 and step 11"),
    ],
)
def test_events_that_do_not_fit_into_the_training(schedule, message):
    with pytest.raises(ValueError, match=message):
        GrowAndDrop(build(), None, schedule, 40)


def test_rankings_are_compared_no_more_often_than_scores_are_made():
    with pytest.raises(ValueError, match="observe_every must be at most 5, as often as the schedule compares, got 6"):
        setup(WhenSettled(5, 30, every=5), observe_every=6)


EARLY = WhenSettled(earliest=5, latest=30, every=2, threshold=0.9, patience=2, events=2, fraction=0.4)


def test_a_training_adapts_early_or_at_the_deadline():
    _, events = run(*setup(EARLY), range(1, 41))
    assert len(events) == 2
    assert 5 <= events[0].step < 17
    assert events[0].step % 2 == 0 or events[0].step == 5
    late = WhenSettled(earliest=5, latest=30, every=2, threshold=0.99999, patience=9, events=2, fraction=0.4)
    assert [event.step for event in run(*setup(late), range(1, 41))[1]] == [18, 30]


@pytest.mark.parametrize("stop", range(3, 40, 4))
def test_a_resumed_training_adapts_at_the_same_steps(stop):
    whole = run(*setup(EARLY), range(1, 41))
    model, optimizer, controller = setup(EARLY)
    _, events = run(model, optimizer, controller, range(1, stop + 1))
    fresh = setup(EARLY)
    for part, other in zip((fresh[2], fresh[0], fresh[1]), (controller, model, optimizer), strict=True):
        part.load_state_dict(other.state_dict())
    losses, later = run(*fresh, range(stop + 1, 41))
    assert losses == whole[0][stop:]
    assert without_time([*events, *later]) == without_time(whole[1])


def test_the_ranking_leaves_frozen_modules_out():
    model, _, controller = setup(EARLY)
    model.blocks[:2].requires_grad_(False)
    assert len(controller._ranked()) == 12


def test_a_state_of_the_other_schedule_changes_nothing():
    model, optimizer, controller = setup(Schedule(start=10))
    run(model, optimizer, controller, range(1, 21))
    other, _, fresh = setup(EARLY)
    shapes = [p.shape for p in other.parameters()]
    with pytest.raises(ValueError, match="another kind of schedule"):
        fresh.load_state_dict(controller.state_dict())
    assert [p.shape for p in other.parameters()] == shapes
    assert fresh.events == []
