"""Plans: the published selection, the budget, ties, limits, and their cost at many components."""

import json
import math
import random
import time

import pytest

from dmao_kernels.structure import Caps, Group, ModulePlan, Plan, given_plan, make_plan
from dmao_kernels.structure.plan import resized

D = 384
KINDS = {  # name: components, own parameters, shared parameters of a Conformer block at d = 384
    "ff1": (4, 2 * D * D + D, 3 * D),
    "conv": (4, 3 * D * D // 4 + 9 * D, 3 * D),
    "mhsa": (6, 256 * D + 192, 3 * D),
    "ff2": (4, 2 * D * D + D, 3 * D),
}


def conformer(score=lambda: 1.0, blocks=12, split=1):
    """The published Conformer; ``split`` cuts every component in that many, heads excepted."""
    groups = []
    for b in range(blocks):
        for kind, (n, own, shared) in KINDS.items():
            parts = 1 if kind == "mhsa" else split
            groups.append(
                Group(f"{b}.{kind}", tuple(score() for _ in range(n * parts)), own // parts, shared, n * parts)
            )
    return groups


def counts(plan, kind):
    return [n for name, n in plan.counts().items() if name.endswith(kind)]


def smallest(groups):
    return min(g.own for g in groups if g.scores)


def test_published_test_vector():
    groups = conformer()
    assert [g.cost for g in groups[:4]] == [295_584, 114_336, 98_688, 295_584]
    plan = make_plan(groups, fraction=0.15, selection="paper")
    assert (plan.dropped, plan.removed) == (34, 6_237_120)
    assert (plan.grown, plan.added) == (35, 6_532_704)
    assert counts(plan, "ff1") == [8, 8, 4, 4, 4, 4, 4, 4, 4, 4, 2, 0]
    assert counts(plan, "ff2") == [8, 7, 4, 4, 4, 4, 4, 4, 4, 4, 0, 0]
    assert counts(plan, "conv") == [8, 8, 4, 4, 4, 4, 4, 4, 4, 4, 0, 0]
    assert counts(plan, "mhsa") == [12, 12, 6, 6, 6, 6, 6, 6, 6, 6, 0, 0]


@pytest.mark.parametrize("per_cost", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_exact_keeps_the_budget_over_events(seed, per_cost):
    rng = random.Random(seed)
    groups = conformer(rng.random, blocks=rng.randint(1, 4))
    budget = None
    for _ in range(4):
        plan = make_plan(groups, rng.choice([0.05, 0.15, 0.4]), per_cost=per_cost, budget=budget)
        budget = budget or plan.before
        assert budget - smallest(groups) < plan.after <= budget
        assert plan.dropped > 0
        groups = [
            Group(g.name, tuple(rng.random() for _ in m.sources), g.own, g.shared, g.standard)
            for g, m in zip(groups, plan.modules, strict=True)
        ]
        total = sum(g.own * len(g.scores) + g.shared * bool(g.scores) for g in groups)
        assert total == plan.after


@pytest.mark.parametrize("seed", range(200))
def test_exact_meets_the_default_budget_whatever_the_costs(seed):
    rng = random.Random(seed)
    groups = [
        Group(str(i), tuple(rng.choice([0.0, 1.0, rng.random()]) for _ in range(rng.randint(0, 4))),
              rng.choice([1, 3, 50, 97, 1000]), rng.choice([0, 2, 500]), 4)
        for i in range(rng.randint(1, 6))
    ]  # fmt: skip
    groups.append(Group("one", (0.5,), rng.choice([1, 10, 100])))
    budget = sum(g.own * len(g.scores) + g.shared * bool(g.scores) for g in groups)
    for _ in range(3):  # the budget of the first event holds for all
        plan = make_plan(groups, rng.choice([0.1, 0.5, 0.9]), budget=budget)
        assert budget - smallest(groups) < plan.after <= budget
        groups = [
            Group(g.name, tuple(rng.random() for _ in m.sources), g.own, g.shared, g.standard)
            for g, m in zip(groups, plan.modules, strict=True)
        ]


def test_exact_drops_the_lowest_and_grows_the_highest():
    plan = make_plan([Group("a", (3.0, 0.0, 5.0, 1.0), 10), Group("b", (4.0, 2.0), 10)], fraction=0.2)
    assert plan.sources == {"a": (0, 2, 2), "b": (0, 0, 1)}
    assert (plan.before, plan.after, plan.dropped, plan.grown) == (60, 60, 2, 2)
    assert (plan.selection, plan.seed) == ("exact", 0)


def test_no_fraction_no_change():
    assert make_plan([Group("a", (3.0, 0.0, 5.0, 1.0), 10)], fraction=0.0).sources == {"a": (0, 1, 2, 3)}


def test_paper_grows_up_to_the_fraction_and_past_it_where_less_could_be_dropped():
    plan = make_plan([Group("a", (1.0, 3.0, 2.0, 0.0), 10)], 0.25, "paper", keep_at_least=4)
    assert (plan.dropped, plan.sources) == (0, {"a": (0, 1, 1, 2, 2, 3)})


def test_drops_that_the_budget_demands_count_towards_the_fraction():
    plan = make_plan([Group("a", tuple(map(float, range(10))), 1)], 0.15, budget=8)
    assert plan.sources == {"a": (2, 3, 4, 5, 6, 7, 8, 9)}


def test_exact_keeps_the_best_of_the_dropped_that_still_fit():
    groups = [Group("small", (0.1, 0.2, 0.3), 10), Group("large", (1.0,), 12)]
    plan = make_plan(groups, fraction=0.5)  # drops all the small ones, doubles the large one, has 18 left
    assert plan.sources == {"small": (2,), "large": (0, 0)}
    assert (plan.dropped, plan.grown, plan.after) == (2, 1, 34)


def test_the_surplus_of_drops_is_halved_until_the_budget_is_met():
    groups = [Group("large", (3.0,), 30), Group("small", (0.0,), 10)]
    plan = make_plan(groups, 0.5, budget=67)  # neither with both of them dropped nor with none, but with one
    assert (plan.sources, plan.after) == ({"large": (0, 0), "small": ()}, 60)


def test_what_fits_exactly_is_kept():
    groups = [Group("small", (0.1, 0.2, 0.3, 0.4, 0.9), 10), Group("large", (1.0,), 20)]
    plan = make_plan(groups, fraction=0.5)  # drops four, doubles the other two, and has 10 left
    assert plan.sources == {"small": (3, 4, 4), "large": (0, 0)}


def test_score_per_cost():
    groups = [Group("dear", (2.0, 2.0), 100), Group("cheap", (1.0,) * 10, 10)]
    plain, per_cost = (make_plan(groups, 0.1, "paper", per_cost=choice) for choice in (False, True))
    assert (plain.modules[0].dropped, plain.modules[1].dropped) == ((), (6, 7, 8, 9))
    assert (per_cost.modules[0].dropped, per_cost.modules[1].dropped) == ((1,), ())


def test_ties_keep_the_order():
    plan = make_plan([Group("a", (1.0,) * 4, 1), Group("b", (1.0,) * 4, 1)], fraction=0.2)
    assert plan.sources == {"a": (0, 0, 1, 1, 2, 3), "b": (0, 1)}


def test_given_budgets():
    groups = conformer(random.Random(0).random, blocks=2)
    before = make_plan(groups).before
    for budget in (before // 2, before - 1, before + 1, before * 3 // 2):
        plan = make_plan(groups, budget=budget)
        assert budget - smallest(groups) < plan.after <= budget
    fixed = 1_000_000
    plan = make_plan(groups, budget=before + fixed, fixed=fixed)
    assert before + fixed - smallest(groups) < plan.after <= before + fixed


def test_budgets_that_cannot_be_met():
    groups = [Group("a", (1.0, 2.0), 10, shared=5), Group("b", (1.0,), 100)]
    with pytest.raises(
        ValueError, match=r"99 parameters cannot be met: 100 remain when everything that may be dropped"
    ):
        make_plan(groups, budget=99, fixed=100)
    with pytest.raises(ValueError, match=r"15 parameters cannot be met: 115 remain"):
        make_plan(groups, budget=15, keep_at_least=1)
    with pytest.raises(
        ValueError, match=r"1000 parameters cannot be met within one component .10.: 245 is the nearest"
    ):
        make_plan(groups, budget=1000)
    with pytest.raises(ValueError, match=r"250 parameters cannot be met .*202 is the nearest"):
        make_plan([Group("s", (1.0,), 1), Group("t", (1.0, 1.0), 100)], budget=250)


def test_modules_may_be_emptied_unless_kept():
    groups = [Group("low", (0.1, 0.2), 10, shared=3), Group("high", (1.0, 2.0), 10, shared=3)]
    plan = make_plan(groups, fraction=0.3)
    assert plan.sources == {"low": (), "high": (0, 0, 1, 1)}
    assert (plan.before, plan.after) == (46, 43)
    kept = make_plan(groups, fraction=0.3, keep_at_least=1)
    assert kept.sources == {"low": (1, 1), "high": (1, 1)}
    stay = [Group("low", (0.1, 0.2), 10, keep=1), Group("high", (1.0, 2.0), 10)]
    assert make_plan(stay, fraction=0.3).sources["low"] == (1, 1)


def test_revival_is_paid_by_the_budget():
    groups = [Group("gone", (), 10, shared=5, standard=2), Group("a", (1.0, 2.0, 3.0, 4.0), 10)]
    plan = make_plan(groups, fraction=0.1, revive=["gone"])
    assert plan.sources["gone"] == (-1,)
    assert plan.modules[0].fresh == (0,)
    assert plan.before - 10 < plan.after <= plan.before
    assert make_plan(groups, 0.1, "paper", revive=["gone"]).sources["gone"] == (-1,)
    with pytest.raises(ValueError, match=r"a is not empty, it has 4 components"):
        make_plan(groups, revive=["a"])
    with pytest.raises(ValueError, match=r"there is no module c"):
        make_plan(groups, revive=["c"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(bad):
    with pytest.raises(ValueError, match=r"layers.3.conv: scores must be finite, component 1 has"):
        Group("layers.3.conv", (1.0, bad), 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 1.0}, "fraction must be in"),
        ({"fraction": math.nan}, "fraction must be in"),
        ({"fraction": 0.0, "selection": "paper"}, "needs a fraction above 0"),
        ({"selection": "best"}, "selection must be"),
        ({"selection": "paper", "budget": 3}, "a budget needs selection='exact'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan([Group("a", (1.0,), 1)], **arguments)


def test_same_names_are_refused():
    with pytest.raises(ValueError, match=r"names of groups must differ"):
        make_plan([Group("a", (1.0,), 1), Group("a", (1.0,), 1)])


def test_json_round_trip_and_digest():
    plan = make_plan(conformer(random.Random(1).random), seed=7)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert plan.to_json() == json.dumps(json.loads(plan.to_json()), sort_keys=True, separators=(",", ":"))
    assert again.digest() == plan.digest()
    assert make_plan(conformer(random.Random(1).random), seed=8).digest() != plan.digest()
    for text in ("", "[]", '{"modules": [{}]}', '{"modules": [], "nonsense": 1}'):
        with pytest.raises(ValueError, match=r"not the JSON of a plan"):
            Plan.from_json(text)


def test_module_plan_tells_what_happens():
    module = ModulePlan("m", 4, (3, 3, 0, -1))
    assert (module.dropped, module.copies, module.fresh) == ((1, 2), ((0, 1),), (3,))
    with pytest.raises(ValueError, match=r"source 4 is not one of 4"):
        ModulePlan("m", 4, (4,))
    with pytest.raises(ValueError, match=r"at most doubles"):
        ModulePlan("m", 4, (0, 1, 1, 1))
    plan = given_plan({"m": (0, 0, 2)}, {"m": 3})
    assert (plan.dropped, plan.grown) == (1, 1)


def test_a_plan_by_hand_claims_nothing_that_it_does_not_know():
    plan = given_plan({}, {})
    assert plan == Plan(())
    assert (plan.seed, plan.dropped, plan.grown) == (0, 0, 0)
    assert (plan.removed, plan.added, plan.before, plan.after) == (0, 0, 0, 0)


@pytest.mark.parametrize("caps", [Caps(), Caps(max_growth=0.01, max_width=1.5)])
@pytest.mark.parametrize("selection", ["paper", "exact"])
def test_not_quadratic_in_the_number_of_components(selection, caps):
    def seconds(split):
        groups = conformer(random.Random(0).random, split=split)
        best = math.inf
        for _ in range(3):
            start = time.process_time()
            plan = make_plan(groups, selection=selection, caps=caps)
            best = min(best, time.process_time() - start)
        return best, sum(p.components for p in plan.modules)

    small, n = seconds(24)
    large, four_n = seconds(96)
    assert (n, four_n) == (3_528, 13_896)
    assert large < 8 * small
    assert large < 1.0


def test_a_module_has_a_million_components_at_most():
    assert len(resized(0, 2**20)) == 2**20
    for width in (-1, 2**20 + 1):
        with pytest.raises(ValueError, match=f"must have 0 to 1048576 components, got {width}"):
            resized(0, width)
