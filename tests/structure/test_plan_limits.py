"""Plans under caps, alignment and given budgets: what must hold for any scores and costs."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmao_kernels.structure import Caps, Group, budget_range, make_plan

SETTINGS = settings(max_examples=150, deadline=None)


@st.composite
def groups(draw):
    found = []
    for i in range(draw(st.integers(1, 5))):
        multiple = draw(st.sampled_from([1, 1, 2, 3]))
        n = multiple * draw(st.integers(0, 4))
        scores = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=n, max_size=n))
        own, shared = draw(st.sampled_from([1, 3, 50, 97])), draw(st.sampled_from([0, 2, 500]))
        standard = multiple * draw(st.integers(1, 4))
        found.append(Group(str(i), tuple(scores), own, shared, standard, draw(st.integers(0, 1)), multiple))
    return found


caps = st.builds(
    Caps,
    st.none() | st.floats(0.01, 1.0),
    st.none() | st.sampled_from([1.0, 1.25, 1.5, 2.0]),
)
fractions = st.sampled_from([0.05, 0.15, 0.4, 0.9])


def cost(groups, counts):
    return sum(g.own * counts[g.name] + g.shared * bool(counts[g.name]) for g in groups)


def check(plan, groups, caps, revived=()):
    """What holds for every plan under these caps."""
    counts = plan.counts()
    assert plan.before == cost(groups, {g.name: len(g.scores) for g in groups})
    assert plan.after == cost(groups, counts)
    added = 0
    for group, module in zip(groups, plan.modules, strict=True):
        n = len(group.scores)
        assert counts[group.name] % group.multiple == 0
        assert len(module.dropped) % group.multiple == 0
        assert len(module.copies) % group.multiple == 0
        assert counts[group.name] >= min(n, group.keep)
        if caps.max_width is not None:
            assert counts[group.name] <= max(n, caps.max_width * (group.standard or n), group.multiple * bool(not n))
        assert len(module.fresh) == (group.multiple if counts[group.name] and not n else 0)
        assert bool(module.fresh) <= (group.name in revived)
        added += len(module.copies) + len(module.fresh)
    if caps.max_growth is not None:
        assert added <= math.ceil(caps.max_growth * sum(len(g.scores) for g in groups))


@SETTINGS
@given(groups(), caps, fractions, st.booleans())
def test_a_budget_held_before_is_held_again(groups, caps, fraction, per_cost):
    plan = make_plan(groups, fraction, caps=caps, per_cost=per_cost)
    check(plan, groups, caps)
    smallest = min((g.own * g.multiple for g in groups if g.scores), default=1)
    assert plan.before - smallest < plan.after <= plan.before
    assert plan == make_plan(groups, fraction, caps=caps, per_cost=per_cost)


@SETTINGS
@given(groups(), caps, fractions)
def test_published_thresholds_under_caps(groups, caps, fraction):
    check(make_plan(groups, fraction, "paper", caps=caps), groups, caps)


@SETTINGS
@given(groups(), caps, fractions, st.floats(0.2, 2.5))
def test_another_budget_is_never_exceeded(groups, caps, fraction, share):
    budget = round(share * cost(groups, {g.name: len(g.scores) for g in groups}))
    empty = [g.name for g in groups if not g.scores]
    for revive in ((), empty):
        try:
            plan = make_plan(groups, fraction, budget=budget, caps=caps, revive=revive)
        except ValueError as error:
            assert "cannot be met" in str(error)  # noqa: PT017
            continue
        check(plan, groups, caps, revive)
        assert plan.after <= budget
        least, most = budget_range(groups, caps=caps)
        assert least <= plan.after
        assert revive or plan.after <= most


@SETTINGS
@given(groups(), st.randoms(use_true_random=False))
def test_alignment_and_budget_hold_over_events(groups, rng):
    budget = cost(groups, {g.name: len(g.scores) for g in groups})
    for _ in range(3):
        plan = make_plan(groups, rng.choice([0.1, 0.5]), budget=budget, caps=Caps(0.5, 2.0))
        check(plan, groups, Caps(0.5, 2.0))
        assert plan.after <= budget
        groups = [
            Group(g.name, tuple(rng.random() for _ in m.sources), g.own, g.shared, g.standard, g.keep, g.multiple)
            for g, m in zip(groups, plan.modules, strict=True)
        ]


def test_components_of_like_rank_go_and_double_together():
    plan = make_plan([Group("a", (5.0, 0.0, 4.0, 2.0, 1.0, 3.0), 10, multiple=2)], fraction=0.3)
    assert plan.sources == {"a": (0, 0, 2, 2, 3, 5)}
    assert (plan.dropped, plan.grown, plan.removed) == (2, 2, 20.0)
    equal = make_plan([Group("a", (1.0, 1.0, 1.0, 0.0), 10, multiple=2)], fraction=0.3)
    assert equal.sources == {"a": (0, 0, 1, 1)}  # the first of equals is worth most


def test_what_must_stay_is_rounded_up_to_whole_blocks():
    groups = [Group("low", (0.1,) * 6, 10, keep=3, multiple=2), Group("high", (1.0,) * 6, 10, keep=6)]
    assert make_plan(groups, fraction=0.5).counts() == {"low": 4, "high": 8}


def test_a_block_ranks_by_its_mean():
    groups = [Group("a", (6.0, 0.0), 1, multiple=2), Group("b", (4.0, 4.0), 1), Group("c", (1.0, 1.0), 1)]
    assert make_plan(groups, fraction=0.3).sources == {"a": (0, 1), "b": (0, 0, 1, 1), "c": ()}


def test_without_a_cap_a_module_may_double_and_an_empty_one_revive():
    assert Caps().width(Group("a", (1.0,) * 3, 1)) == 6
    assert Caps().width(Group("gone", (), 1, multiple=4)) == 4


def test_an_empty_module_of_unknown_width_costs_all_that_it_shares():
    assert Group("gone", (), 10, shared=5).cost == 15


def test_the_cap_of_a_module_passes_growth_on():
    groups = [Group("high", (9.0, 8.0), 1, standard=2), Group("middle", (5.0, 4.0), 1), Group("low", (1.0, 0.5), 1)]
    free, capped = (make_plan(groups, 0.3, caps=caps) for caps in (Caps(), Caps(max_width=1.5)))
    assert free.counts() == {"high": 4, "middle": 2, "low": 0}
    assert capped.counts() == {"high": 3, "middle": 3, "low": 0}
    # one that is wider than its cap already keeps what it has, and comes back to no more than that
    wide = [Group("wide", (9.0, 8.0, 0.1, 0.2), 1, standard=2), Group("low", (0.3, 0.4), 1)]
    assert make_plan(wide, 0.6, caps=Caps(max_width=1.0)).counts() == {"wide": 4, "low": 2}


@pytest.mark.parametrize("selection", ["exact", "paper"])
def test_what_a_module_drops_makes_room_under_its_cap(selection):
    groups = [Group("a", (9.0, 8.0, 0.2, 0.1), 1, standard=4)]
    plan = make_plan(groups, 0.3, selection, caps=Caps(max_width=1.0))
    assert plan.sources == {"a": (0, 0, 1, 1)}


def test_what_a_cap_forbids_to_keep_is_no_error():
    plan = make_plan([Group("a", (4.0, 3.0, 2.0, 1.0), 1, standard=4)], 0.3, budget=9, caps=Caps(max_width=1.0))
    assert plan.sources == {"a": (0, 0, 1, 1)}


def test_what_is_kept_counts_once_under_a_cap():
    groups = [Group("small", (0.1, 0.2, 0.3, 0.4, 0.5), 10, standard=5), Group("large", (1.0,), 12, standard=1)]
    plan = make_plan(groups, 0.5, caps=Caps(max_width=1.0))  # drops four, doubles one, keeps three
    assert plan.sources == {"small": (1, 2, 3, 4, 4), "large": (0,)}


def test_the_cap_of_an_event():
    groups = [Group("a", tuple(map(float, range(100))), 1)]
    plan = make_plan(groups, 0.3, caps=Caps(max_growth=0.07))
    assert (plan.grown, plan.dropped) == (7, 7)
    assert plan.modules[0].dropped == tuple(range(7))


def test_the_cap_of_an_event_by_published_thresholds():
    groups = [Group("a", tuple(map(float, range(100))), 1)]
    plan = make_plan(groups, 0.3, "paper", caps=Caps(max_growth=0.07))
    assert (plan.grown, plan.dropped) == (7, 31)


def test_growth_towards_a_larger_budget_takes_several_events_under_a_cap():
    groups, sizes = [Group("a", (1.0,) * 10, 1)], []
    for _ in range(6):
        plan = make_plan(groups, 0.1, budget=16, caps=Caps(max_growth=0.2))
        sizes.append(plan.after)
        groups = [Group("a", (1.0,) * plan.after, 1)]
    assert sizes == [12, 15, 16, 16, 16, 16]


def test_revival_is_growth():
    groups = [Group("x", (), 1, standard=2), Group("y", (), 1, standard=2), Group("a", (1.0,) * 10, 1)]
    plan = make_plan(groups, 0.5, caps=Caps(max_growth=0.1), revive=["y", "x"])
    assert plan.counts() == {"x": 0, "y": 1, "a": 9}
    aligned = [Group("x", (), 1, standard=4, multiple=4), Group("a", (1.0,) * 8, 1)]
    assert make_plan(aligned, 0.5, revive=["x"]).sources["x"] == (-1,) * 4
    lone = [Group("a", (1.0,), 9), *(Group(str(i), (), 1) for i in range(5))]
    assert make_plan(lone, 0.5, budget=14, revive=[str(i) for i in range(5)]).after == 14


def test_modules_that_are_all_empty_come_back_within_the_dearest_of_them():
    groups = [Group("x", (), 3), Group("y", (), 10)]
    assert make_plan(groups, budget=18, revive=["x", "y"]).after == 13
    with pytest.raises(ValueError, match=r"23 parameters cannot be met within one component \(10\): 13 is the nearest"):
        make_plan(groups, budget=23, revive=["x", "y"])


def test_without_modules_there_is_one_budget():
    assert make_plan([], fixed=5).after == 5
    with pytest.raises(ValueError, match=r"6 parameters cannot be met within one component \(1\): 5 is the nearest"):
        make_plan([], fixed=5, budget=6)


def test_budget_range():
    groups = [Group("a", (1.0,) * 4, 10, shared=5, standard=4), Group("b", (1.0,) * 2, 100, keep=1, standard=2)]
    assert budget_range(groups, fixed=1000) == (1100, 1085 + 400)
    assert budget_range(groups, keep_at_least=1) == (115, 485)
    assert budget_range(groups, caps=Caps(max_width=1.5)) == (100, 65 + 300)
    assert budget_range(groups, caps=Caps(max_width=9.0)) == (100, 485)  # components at most double all the same
    for budget in budget_range(groups, fixed=1000):
        assert make_plan(groups, budget=budget, fixed=1000).after == budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_growth": 0.0}, r"max_growth must be in \(0, 1\], got 0.0"),
        ({"max_growth": 1.5}, r"max_growth must be in \(0, 1\], got 1.5"),
        ({"max_growth": math.nan}, r"max_growth must be in"),
        ({"max_width": 0.5}, r"max_width must be finite and 1 or more, got 0.5"),
        ({"max_width": math.inf}, r"max_width must be finite"),
    ],
)
def test_caps_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Caps(**arguments)


def test_groups_that_cannot_be():
    with pytest.raises(ValueError, match=r"m: the components must be a multiple of 4, got 6"):
        Group("m", (1.0,) * 6, 1, multiple=4)
    with pytest.raises(ValueError, match=r"m: the components must be a multiple of 0, got 1"):
        Group("m", (1.0,), 1, multiple=0)
    with pytest.raises(ValueError, match=r"m: a component must cost 1 or more, got 0"):
        Group("m", (1.0,), 0)


def test_the_unit_is_named():
    groups = [Group("a", (1.0, 2.0), 10)]
    assert make_plan(groups, unit="ns").unit == "ns"
    with pytest.raises(ValueError, match=r"a budget of 9 ns cannot be met: 10 remain"):
        make_plan(groups, budget=9, unit="ns", keep_at_least=1)
    with pytest.raises(ValueError, match=r"a budget of 99 ns cannot be met within one component \(10\): 40"):
        make_plan(groups, budget=99, unit="ns")


def test_random_large_plans_keep_all_limits():
    rng = random.Random(0)
    groups = [
        Group(str(i), tuple(rng.random() for _ in range(512)), rng.randint(1, 99), 50, 512, 0, 8) for i in range(20)
    ]
    limits = Caps(0.05, 1.25)
    check(make_plan(groups, 0.15, caps=limits), groups, limits)
