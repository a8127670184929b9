import math

import pytest
from dmao.schedule import LearningRate, Schedule


def test_published_events_fall_at_equal_parts_of_the_end():
    assert Schedule(end=600, events=3, fraction=0.15).steps(1000) == (200, 400, 600)
    assert Schedule(end=0.15, fraction=0.15).steps(1000) == (150,)


def test_events_spread_from_start_to_end():
    schedule = Schedule(start=0.2, end=0.5, events=4, fraction=0.2)
    assert schedule.steps(1000) == (200, 300, 400, 500)
    assert schedule.fraction_per_event == pytest.approx(0.05)


def test_one_event_needs_one_place():
    assert Schedule(start=0.4).steps(10) == Schedule(end=0.4).steps(10) == Schedule(start=4, end=4).steps(10) == (4,)
    with pytest.raises(ValueError, match="one event falls at one step"):
        Schedule(start=0.2, end=0.4).steps(10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "start or end"),
        ({"start": 1.0}, "between 0 and 1, got 1.0"),
        ({"start": 0}, "must be 1 or more"),
        ({"start": True}, "start must be"),
        ({"start": "soon"}, "start must be"),
        ({"start": 0.2, "events": 0}, "events must be"),
        ({"start": 0.2, "events": 1.5}, "events must be"),
        ({"start": 0.2, "fraction": 0.0}, "fraction must"),
        ({"start": 0.2, "fraction": math.nan}, "fraction must"),
    ],
)
def test_schedule_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(start=100), "after step 1 to 99 of 100"),
        (Schedule(end=0.001), "after step 1 to 99 of 100"),
        (Schedule(start=10, end=12, events=9), "do not fit"),
        (Schedule(start=0.5, end=0.2, events=2), "start < end"),
    ],
)
def test_events_that_do_not_fit(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule.steps(100)


def test_one_cycle_touches_first_peak_and_last():
    rate = LearningRate(peak=2.0, warmup=0.25, first=0.1, last=0.01)
    values = [rate.at(step, 101) for step in range(1, 102)]
    assert values[0] == pytest.approx(0.2)
    assert values[25] == max(values) == pytest.approx(2.0)
    assert values[-1] == pytest.approx(0.02)
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)


def test_one_cycle_without_warmup_starts_at_the_peak():
    assert LearningRate(peak=2.0, warmup=0.0).at(1, 10) == pytest.approx(2.0)


def test_piecewise_is_linear_between_its_points():
    points = ((0.0, 0.01), (0.45, 1.0), (0.9, 0.01), (1.0, 2.5e-5))
    rate = LearningRate(peak=4e-4, shape="piecewise", points=points)
    for share, factor in [*points, (0.225, 0.505), (0.675, 0.505), (0.95, (0.01 + 2.5e-5) / 2)]:
        assert rate.at(1 + round(share * 1000), 1001) == pytest.approx(4e-4 * factor)
    assert rate.at(1001, 1001) == pytest.approx(1e-8)


def test_constant():
    assert {LearningRate(peak=1.0, shape="constant").at(step, 9) for step in range(1, 10)} == {1.0}
    assert LearningRate(peak=1.0).at(1, 1) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"peak": 0.0}, "peak"),
        ({"peak": math.inf}, "peak"),
        ({"shape": "square"}, "shape"),
        ({"warmup": 1.0}, "warmup"),
        ({"last": -1.0}, "must be 0 or more"),
        ({"first": math.nan}, "must be 0 or more"),
        ({"shape": "piecewise"}, "two or more pairs"),
        ({"shape": "piecewise", "points": ((0.0, 1.0), (0.5, 1.0))}, "rise from 0 to 1"),
        ({"shape": "piecewise", "points": ((0.0, 1.0), (1.0, -1.0))}, "0 or more"),
    ],
)
def test_learning_rate_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearningRate(**arguments)
