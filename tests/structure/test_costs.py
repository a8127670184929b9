"""Cost models: parameters as ever, multiply-accumulates against PyTorch's own counter, and what costs refuse."""

import json

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dmao_kernels.layout import ComponentLayout
from dmao_kernels.nn import RelPosSelfAttention
from dmao_kernels.structure import (
    ComponentGates,
    Costs,
    Elastic,
    MacCost,
    ParameterCost,
    apply_plan,
    make_plan,
    register_family,
    register_macs,
)
from dmao_kernels.structure.costs import aligned_components, weight_macs
from tests.structure.plain import (
    FAMILIES,
    D,
    GatingMLP,
    PackedAttention,
    PlainAttention,
    PlainFeedForward,
    build,
    double_first,
    drop_second,
    inputs,
    plan_for,
)


@pytest.mark.parametrize("edit", [None, double_first, drop_second])
def test_parameters(edit):
    elastic = Elastic(build())
    costs = ParameterCost().measure(elastic)
    if edit is not None:
        apply_plan(plan_for(elastic, edit), elastic)
    assert (costs.unit, costs.measured) == ("parameters", False)
    assert costs.total(elastic.counts()) == elastic.live_parameters()
    assert costs.fixed == elastic.fixed_parameters()
    for name, m in elastic.modules.items():
        assert costs.of(name, m.components) == m.parameters
        assert costs.of(name, 0) == 0


def counted(model, batch, time):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(inputs(batch=batch, time=time))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


@pytest.mark.parametrize("edit", [None, double_first, drop_second])
@pytest.mark.parametrize("cls", FAMILIES)
def test_macs_are_those_that_pytorch_counts(cls, edit):
    elastic = Elastic(build(cls))
    batch, time = 3, 11
    rest = batch * time * 5 * D
    costs = MacCost(time, batch, fixed=rest).measure(elastic)
    if edit is not None:
        apply_plan(plan_for(elastic, edit), elastic)
    assert costs.unit == "MACs"
    assert costs.total(elastic.counts()) == counted(elastic.model, batch, time)


def test_macs_of_an_empty_module():
    elastic = Elastic(build(PlainFeedForward, PlainAttention))
    costs = MacCost(7).measure(elastic)
    apply_plan(plan_for(elastic, lambda n: ()), elastic)
    assert costs.total(elastic.counts()) == 0
    assert counted(elastic.model, 1, 7) == 7 * 5 * D


@pytest.mark.parametrize("radius", [None, 4])
def test_macs_of_relative_positions(radius):
    d, heads, k, time = 16, 2, 8, 10
    costs = MacCost(time).measure(Elastic(nn.Sequential(RelPosSelfAttention(d, heads, k, radius=radius))))
    projections = 4 * time * d * k + (0 if radius else (2 * time - 1) * d * k)
    assert costs.own == {"0": projections + 3 * time * time * k}


def test_gates_cost_nothing():
    elastic = Elastic(build())
    models = ParameterCost(), MacCost(9)
    before = [model.measure(elastic) for model in models]
    ComponentGates(elastic)
    assert [model.measure(elastic) for model in models] == before


class Lookup(nn.Module):
    """A family whose one matrix is no matrix product."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Parameter(torch.randn(8, D)), nn.Linear(8, D, bias=False)


LOOKUP = ComponentLayout("lookup", {"table": "(C u) d", "out.weight": "e (C u)"}, ("out.weight",), "table",
                         attributes={"out.in_features": "(C u)"})  # fmt: skip


def test_a_family_tells_its_macs(monkeypatch):
    register_family(Lookup, LOOKUP)
    elastic = Elastic(nn.Sequential(Lookup()))
    assert MacCost(5).measure(elastic).own == {"0": 5 * 2 * (2 * D)}
    monkeypatch.setattr("dmao_kernels.structure.costs._MACS", {})
    register_macs("lookup", lambda m, length: weight_macs(m, length) // 2 + length**2)
    assert MacCost(5, batch=2).measure(elastic).own == {"0": 2 * (5 * 2 * D + 25)}
    register_macs("lookup", lambda m, length: 0)
    with pytest.raises(ValueError, match=r"a component of 0 must cost a whole number from 1 of MACs, got 0"):
        MacCost(5).measure(elastic)


def test_an_attention_that_names_its_heads_otherwise():
    class Other(PlainAttention):
        pass

    patterns = {f"{n}.{t}": p for n in "qkv" for t, p in (("weight", "(C h) d"), ("bias", "(C h)"))}
    patterns |= {"v.weight": "(C w) d", "v.bias": "(C w)", "out.weight": "e (C w)"}
    register_family(Other, ComponentLayout("attention", patterns, ("out.weight",), "out.weight", attributes={
        "heads": "C"}))  # fmt: skip
    with pytest.raises(ValueError, match=r"0: an attention layout must call the width of a head k, got"):
        MacCost(5).measure(Elastic(nn.Sequential(Other())))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be 1 or more, got 0"),
        ({"length": 1, "batch": 0}, "batch must be 1 or more, got 0"),
        ({"length": 1, "fixed": -1}, "fixed must be 0 or more, got -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MacCost(**arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({"a": 0}, {"a": 0}), "a component of a must cost a whole number from 1 of J, got 0"),
        (({"a": 1.5}, {"a": 0}), "a component of a must cost a whole number from 1 of J, got 1.5"),
        (({"a": 1}, {"a": -1}), "Costs: a must cost a whole number from 0 of J, got -1"),
        (({"a": 1}, {"a": 0}, -5), "Costs: the rest must cost a whole number from 0 of J, got -5"),
        (({"a": 1}, {}), "own and shared must be of the same modules"),
    ],
)
def test_costs_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        Costs("J", *values)


def test_costs_are_data():
    costs = Costs("J", {"a": 3, "b": 1}, {"a": 2, "b": 0}, 10, measured=True)
    assert Costs.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs
    assert costs.total({"a": 2, "b": 0}) == 10 + 2 * 3 + 2
    with pytest.raises(ValueError, match=r"the modules must be \['0'\], got \['a', 'b'\]"):
        costs.measure(Elastic(nn.Sequential(PlainFeedForward())))


def test_which_saved_costs_may_take_the_place():
    here = Costs("J", {"a": 3}, {"a": 2}, 10)
    here.require_same(Costs("J", {"a": 3}, {"a": 2}, 10))
    Costs("J", {"a": 3}, {"a": 2}, 10, measured=True).require_same(Costs("J", {"a": 9}, {"a": 9}, 9, measured=True))
    for other, message in (
        (Costs("ns", {"a": 3}, {"a": 2}, 10), "cost must be in J, got a state with a budget in ns"),
        (Costs("J", {"b": 3}, {"b": 2}, 10), r"cost must be of \['a'\], got \['b'\]"),
        (Costs("J", {"a": 4}, {"a": 2}, 10), "a: the own cost must be 3 J, got 4"),
        (Costs("J", {"a": 3}, {"a": 1}, 10), "a: the shared cost must be 2 J, got 1"),
        (Costs("J", {"a": 3}, {"a": 2}, 11), "outside of elastic modules must be 10 J, got 11"),
    ):
        with pytest.raises(ValueError, match=message):
            here.require_same(other)


def test_groups_have_these_costs():
    elastic = Elastic(build(PlainFeedForward, PlainAttention))
    scores = {name: [1.0] * n for name, n in elastic.counts().items()}
    plain, macs = elastic.groups(scores), elastic.groups(scores, MacCost(20).measure(elastic))
    assert [g.own for g in plain] == [m.own_cost for m in elastic.modules.values()]
    assert [g.own for g in macs] == [20 * 2 * 6 * D, 20 * (2 * 4 + 2 * 5) * D + 400 * (4 + 5)]
    assert make_plan(macs).before == counted(elastic.model, 1, 20) - 20 * 5 * D


@pytest.mark.parametrize(
    ("cls", "align", "expected"),
    [
        (PlainFeedForward, 1, 1),
        (PlainFeedForward, 6, 1),  # 4 components of 6 units
        (PlainFeedForward, 12, 2),
        (PlainFeedForward, 8, 4),
        (PackedAttention, 6, 2),  # 4 heads of 3
        (PlainAttention, 10, 10),  # heads of 4 and of 5: 5 of the ones, 2 of the others
        (GatingMLP, 12, 2),  # 4 components of 6 in each half
    ],
)
def test_aligned_widths(cls, align, expected):
    (m,) = Elastic(build(cls)).modules.values()
    assert aligned_components(m, align) == expected


def test_widths_stay_aligned():
    elastic = Elastic(build(PlainFeedForward, PackedAttention))
    scores = {name: [float(j) for j in range(n)] for name, n in elastic.counts().items()}
    apply_plan(make_plan(elastic.groups(scores, align=12), 0.3), elastic)
    for m in elastic.modules.values():
        for name, tensor in m.tensors():
            if name.endswith("weight") and tensor.dim() == 2:
                assert tensor.shape[0] % 12 == tensor.shape[1] % 12 == 0
    with pytest.raises(ValueError, match=r"branches.0: align=16 needs a multiple of 8 components, got 4"):
        Elastic(build(PlainFeedForward)).groups({"branches.0": [1.0] * 4}, align=16)
