"""Plans made on the device: what make_plan selects, to the last component."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmao_kernels.structure import Group, make_plan
from dmao_kernels.structure.selection import UNCAPPED, _Market
from dmao_kernels.structure.slots.plan import make_slot_plan

SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 4, width=32)
COSTS = st.sampled_from([1, 3, 10, 50, 97, 1000])


@st.composite
def problems(draw):
    groups = []
    for i in range(draw(st.integers(1, 6))):
        scores = tuple(draw(st.lists(SCORES, max_size=6)))
        shared, standard = draw(st.sampled_from([0, 2, 7, 500])), draw(st.integers(1, 6))
        groups.append(Group(str(i), scores, draw(COSTS), shared, standard, draw(st.integers(0, 1))))
    if not any(group.scores for group in groups):
        groups.append(Group("one", (0.5,), draw(COSTS)))
    return groups


OPTIONS = st.fixed_dictionaries(
    {
        "fraction": st.sampled_from([0.05, 0.1, 0.15, 1 / 3, 0.5, 0.9]),
        "per_cost": st.booleans(),
        "keep_at_least": st.sampled_from([0, 0, 1, 2]),
        "seed": st.integers(0, 9),
    }
)


def elastic_of(groups, capacities, fixed):
    """As much of an elastic model in slots storage as a plan looks at."""
    modules = {
        g.name: SimpleNamespace(
            name=g.name,
            stored=capacity,
            own_cost=g.own,
            shared_cost=g.shared,
            standard=g.standard or len(g.scores) or 1,
            can_be_empty=not g.keep,
            device=torch.device("cpu"),
            slots=torch.arange(capacity) < len(g.scores),
        )
        for g, capacity in zip(groups, capacities, strict=True)
    }
    return SimpleNamespace(storage="slots", modules=modules, edits=0, fixed_parameters=lambda: fixed)


def on_the_device(groups, capacities, fixed=0, **options):
    """The plan, from scores that are NaN in dead slots."""
    scores = {
        g.name: torch.tensor([*g.scores, *[torch.nan] * (capacity - len(g.scores))])
        for g, capacity in zip(groups, capacities, strict=True)
    }
    return make_slot_plan(elastic_of(groups, capacities, fixed), scores, **options)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), OPTIONS, st.sampled_from(["exact", "paper"]), st.booleans(), st.data())
def test_is_the_plan_of_the_host(groups, options, selection, revive, data):
    capacities = [2 * len(g.scores) + data.draw(st.integers(1, 2)) for g in groups]
    empty = [g.name for g in groups if not g.scores] if revive else []
    budget, fixed = None, 17
    if selection == "exact" and data.draw(st.booleans()):
        before = make_plan(groups, 0.1, "paper", fixed=fixed).before
        budget = round(before * data.draw(st.floats(0.1, 2)))
    found = on_the_device(groups, capacities, fixed, selection=selection, budget=budget, revive=revive, **options)
    plan, error = None, ""
    try:
        plan = make_plan(groups, selection=selection, budget=budget, fixed=fixed, revive=empty, **options)
    except ValueError as caught:
        error = str(caught)
    assert bool(found.met) == (plan is not None)
    if plan is not None:
        assert found.plan == plan
        assert found.plan.digest() == plan.digest()
    elif "remain when everything" in error:
        assert all(not m.changed for m in found.plan.modules)
    else:
        assert f": {found.plan.after} is the nearest found" in error


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), OPTIONS, st.sampled_from(["exact", "paper"]), st.data())
def test_no_module_outgrows_its_slots(groups, options, selection, data):
    capacities = [max(1, len(g.scores) + data.draw(st.integers(0, 2))) for g in groups]
    found = on_the_device(groups, capacities, selection=selection, **options)
    assert all(len(m.sources) <= capacity for m, capacity in zip(found.plan.modules, capacities, strict=True))
    market = _Market(groups, 0, "parameters", options["per_cost"], options["keep_at_least"], UNCAPPED, ())
    market.most = capacities
    if selection == "paper":
        assert found.plan == market.plan(*market.paper(options["fraction"]), selection, options["seed"])
    elif found.met:
        plan = market.plan(*market.exact(options["fraction"], market.before), selection, options["seed"])
        assert found.plan == plan


def test_an_emptied_module_comes_back_with_what_it_shares_or_not_at_all():
    """Without both of "a", 7 remain: enough for its second component, but not for what that needs besides."""
    groups = [Group("a", (0.2, 0.1), 5, shared=100, standard=2), Group("b", (1.0,), 103)]
    plan = make_plan(groups, 0.4)
    assert plan.sources == {"a": (0, 0), "b": (0,)}
    assert on_the_device(groups, [4, 2], fraction=0.4).plan == plan


def test_refuses():
    groups = [Group("a", (1.0, 2.0), 3)]
    for options, message in (
        ({"fraction": 1.0}, r"fraction must be in \[0, 1\), above 0 for 'paper', got 1.0"),
        ({"fraction": 0.0, "selection": "paper"}, "above 0 for 'paper', got 0.0"),
        ({"selection": "best"}, "selection must be 'exact' or 'paper', got 'best'"),
        ({"selection": "paper", "budget": 9}, "a budget needs selection='exact'"),
        ({"frozen": ["a"]}, "all modules are frozen"),
    ):
        with pytest.raises(ValueError, match=f"make_slot_plan: .*{message}"):
            on_the_device(groups, [4], **options)
    with pytest.raises(ValueError, match="make_slot_plan: the model must be in slots storage"):
        make_slot_plan(SimpleNamespace(storage="tight"), {})
