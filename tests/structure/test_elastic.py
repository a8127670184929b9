"""Discovery, costs, and the structure's state."""

import copy
import dataclasses
import json
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from dmao_kernels.nn import FeedForward
from dmao_kernels.structure import (
    ComponentGates,
    Elastic,
    apply_plan,
    attention_layout,
    cgmlp_layout,
    feedforward_layout,
    given_plan,
    glu_convolution_layout,
    register_family,
)
from dmao_kernels.structure import state as structure_states
from tests.structure import plain
from tests.structure.plain import build, inputs, mixed, plan_for, train


class Carrying(plain.PlainFeedForward):
    """A module that tells its own layout."""

    def component_layout(self):
        return feedforward_layout(), 8


@pytest.mark.parametrize("d", [256, 384, 512])
def test_costs_are_the_published_ones(d):
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(d)
            self.pointwise1 = nn.Linear(d, 2 * d)
            self.depthwise = nn.Conv1d(d, d, 31, groups=d)
            self.depthwise_norm = nn.LayerNorm(d)
            self.pointwise2 = nn.Linear(d, d)

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(d)
            self.w1 = nn.Linear(d, 4 * d)
            self.w2 = nn.Linear(4 * d, d)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = d // 64
            self.norm = nn.LayerNorm(d)
            self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))

    class Gating(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(d)
            self.linear1 = nn.Linear(d, 6 * d)
            self.gate_norm = nn.LayerNorm(3 * d)
            self.depthwise = nn.Conv1d(3 * d, 3 * d, 31, groups=3 * d)
            self.linear2 = nn.Linear(3 * d, d)

    register_family(FeedForward, feedforward_layout())
    register_family(Convolution, glu_convolution_layout(norm_kind="layer"))
    register_family(Attention, attention_layout())
    register_family(Gating, cgmlp_layout(norm_kind="layer"))
    model = nn.Sequential(FeedForward(), Convolution(), Attention(), Gating())
    elastic = Elastic(model)
    assert [m.cost for m in elastic.modules.values()] == [
        2 * d * d + 7 * d / 4,
        0.75 * d * d + 9.75 * d,
        256 * d + 384 if d == 512 else 256 * d + 192 + 192,
        2.25 * d * d + 27.75 * d,
    ]
    assert elastic.counts() == {"0": 4, "1": 4, "2": d // 64, "3": 4}
    assert elastic.live_parameters() == sum(p.numel() for p in model.parameters())
    assert elastic.fixed_parameters() == 0


def test_discovery_in_module_order():
    model = nn.ModuleDict({"b": Carrying(), "a": nn.Sequential(plain.PackedAttention(), plain.PlainFeedForward())})
    assert Elastic(model).counts() == {"b": 8, "a.0": 4, "a.1": 4}
    assert Elastic(model, components={"a.1": 6}).counts() == {"b": 8, "a.0": 4, "a.1": 6}
    assert Elastic(model, components={"feedforward": 2}).counts()["a.1"] == 2
    with pytest.raises(ValueError, match=r"gives no number for a.1 \(feedforward\)"):
        Elastic(model, components={"cgmlp": 2})
    with pytest.raises(ValueError, match=r"must name elastic modules \(b, a.0, a.1\) or families \(.*\), got 'a.2'"):
        Elastic(model, components={"a.2": 6, "feedforward": 4})
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got a list"):
        Elastic([model])
    with pytest.raises(ValueError, match=r"has no elastic module"):
        Elastic(nn.Linear(2, 2))
    assert Elastic(plain.PlainFeedForward()).counts() == {"": 4}


def test_a_model_that_is_itself_elastic_can_be_edited():
    model = plain.PlainFeedForward().double().eval()
    elastic = Elastic(model)
    x = inputs(dtype=torch.float64)
    before, table = model(x), dict(model.state_dict())
    apply_plan(plan_for(elastic, plain.double_first), elastic, companions=[table])
    torch.testing.assert_close(model(x), before)
    assert all(torch.equal(table[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("make", [plain.PlainFeedForward, Carrying, lambda: FeedForward(12, 24, components=4)])
@pytest.mark.parametrize("wrap", [lambda module: module, nn.Sequential])
def test_an_emptied_module_is_made_elastic_by_nobody_else(make, wrap):
    model = wrap(make())
    elastic = Elastic(model)
    (name,) = elastic.modules
    apply_plan(given_plan({name: ()}, elastic.counts()), elastic)
    with pytest.raises(
        ValueError, match=f"{name or 'the model'}: .* at least one component, got 0; .* give the Elastic of that event"
    ):
        Elastic(model)


def test_components_without_parameters_are_refused():
    class Fixed(plain.PlainFeedForward):
        def __init__(self):
            super().__init__(bias=False)
            for linear in (self.w1, self.w2):
                weight = linear.weight.detach()
                del linear.weight
                linear.register_buffer("weight", weight)

        def component_layout(self):
            return feedforward_layout(), 4

    with pytest.raises(ValueError, match=r"the model: the components of a feedforward module must own parameters"):
        Elastic(Fixed())


def test_messages_name_a_model_that_is_itself_elastic():
    elastic = Elastic(plain.PlainFeedForward())
    with pytest.raises(ValueError, match=r"made for 3 components of the model, which has 4 now"):
        apply_plan(given_plan({"": (0,)}, {"": 3}), elastic)
    with pytest.raises(ValueError, match=r"plan: the model: source 9 is not one of 4 components"):
        given_plan({"": (9,)}, elastic.counts())


def test_layouts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"0: layout feedforward: w1.weight: .*24 entries, .* not divisible by 5"):
        Elastic(nn.Sequential(plain.PlainFeedForward()), components=5)
    with pytest.raises(ValueError, match=r"at least one component, got 0"):
        Elastic(plain.PlainFeedForward(), components=0)

    class Wrong(plain.PlainFeedForward):
        names: ClassVar[dict] = {}

        def component_layout(self):
            return dataclasses.replace(feedforward_layout(), **self.names), 4

    cases = [
        (
            {"tensors": {"w1.weight": "(C u) d", "w2.weight": "d (C u)", "w3.weight": "(C u)"}},
            "no submodule w3",
        ),
        (
            {"tensors": {"w1.weight": "(C u) d", "w2.weight": "d (C u)", "w1.gain": "(C u)"}},
            "w1.gain must be a parame",
        ),
        (
            {"tensors": {"w1.weight": "(C u) d", "w2.weight": "(C u) d"}},
            r"w2.weight: pattern '\(C u\) d' does not fit",
        ),
        ({"attributes": {"w1.out_features": "(two C u)"}}, "w1.out_features must be 48"),
        ({"attributes": {"w1.width": "(C u)"}}, "Linear has no attribute width"),
        ({"shared": ("nothing.bias",)}, "no submodule nothing"),
        ({"dropout": ("w1.p",)}, "has no attribute p"),
    ]
    for names, message in cases:
        Wrong.names = names
        with pytest.raises(ValueError, match=message):
            Elastic(Wrong())


def test_tied_and_parametrized_tensors_are_refused():
    model = build(plain.PlainFeedForward, plain.PlainFeedForward)
    model.branches[1].w1.weight = model.branches[0].w1.weight
    with pytest.raises(ValueError, match=r"w1.weight is tied: branches.0.w1.weight and branches.1.w1.weight"):
        Elastic(model)
    model = build(plain.PlainFeedForward)
    parametrizations.weight_norm(model.branches[0].w1)
    with pytest.raises(ValueError, match=r"branches.0: w1.weight is parametrized by _WeightNorm"):
        Elastic(model)
    model = build(plain.PlainFeedForward)
    weight = model.branches[0].w1.weight.detach()
    del model.branches[0].w1.weight
    model.branches[0].w1.weight = weight
    with pytest.raises(ValueError, match=r"must be a parameter or a buffer of Linear, but it is a Tensor"):
        Elastic(model)


def test_a_module_used_twice_is_one_module():
    branch = plain.PlainFeedForward()
    model = plain.Residual(branch, branch)
    assert Elastic(model).counts() == {"branches.0": 4}


@pytest.mark.parametrize("gated", [False, True])
def test_save_build_load(gated, tmp_path):
    def fresh():
        model = build()
        elastic = Elastic(model)
        gates = ComponentGates(elastic) if gated else None
        return model, elastic, gates, torch.optim.AdamW(model.parameters(), lr=1e-3)

    model, elastic, _, optimizer = fresh()
    train(model, optimizer, 2)
    apply_plan(plan_for(elastic, mixed), elastic, optimizer)
    apply_plan(
        given_plan({"branches.0": (), "branches.2": tuple(range(4)) * 2}, elastic.counts()),
        elastic,
        optimizer,
    )
    train(model, optimizer, 2)
    structure = json.loads(json.dumps(elastic.state_dict()))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")

    saved = torch.load(tmp_path / "c.pt")
    again, other, _, loaded = fresh()
    other.load_state_dict(structure)
    again.load_state_dict(saved["model"], strict=True)
    loaded.load_state_dict(saved["optimizer"])
    assert other.counts() == elastic.counts()
    assert other.live_parameters() == elastic.live_parameters()
    x = inputs()
    assert torch.equal(again.eval()(x), model.eval()(x))
    for m in (model, again):
        m.train()
    torch.manual_seed(3)
    losses = train(model, optimizer, 3)
    torch.manual_seed(3)
    assert train(again, loaded, 3) == losses
    apply_plan(given_plan({"branches.0": (-1,)}, {"branches.0": 0}), other)
    again(x)


def test_averaged_copies_are_resized_as_the_model_is():
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic)
    apply_plan(given_plan({"branches.0": (0, 1)}, elastic.counts()), elastic)
    again = build(plain.PlainFeedForward, seed=1)
    average = copy.deepcopy(again)
    Elastic(again).load_state_dict(elastic.state_dict(), companions=[average])
    for other in (again, average):
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.eval()(inputs()), model.eval()(inputs()))


def test_states_of_other_models_are_refused():
    model = build()
    elastic = Elastic(model)
    good = elastic.state_dict()

    def changed(**values):
        state = copy.deepcopy(good)
        state["modules"]["branches.1"].update(values)
        return state

    missing = copy.deepcopy(good)
    del missing["modules"]["branches.0"]
    unknown = copy.deepcopy(good)
    unknown["modules"] |= dict.fromkeys(("b", "a"), good["modules"]["branches.0"])
    cases = [
        ({}, "it has no 'modules'"),
        (None, "it has no 'modules'"),
        ({**good, "version": 2}, "version must be 1, got 2"),
        (missing, r"the state lacks \['branches.0'\], the model lacks \[\]"),
        (unknown, r"the state lacks \[\], the model lacks \['a', 'b'\]"),
        (changed(family="cgmlp"), "branches.1: family must be glu_convolution, got cgmlp"),
        (changed(standard=8), "branches.1: standard must be 4, got 8"),
        (changed(sizes={"u": 3, "d": 99}), "branches.1: sizes must be"),
        (changed(gate=True), "branches.1: gate must be False, got True"),
        (changed(components=-1), "components must be a count, got -1"),
        (changed(components=None), "components must be a count, got None"),
        ({**good, "modules": {**good["modules"], "branches.1": 3}}, "branches.1 must be a mapping, got 3"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message):
            elastic.load_state_dict(state)
    good = copy.deepcopy(good)
    elastic.state_dict()["modules"]["branches.1"]["sizes"].clear()  # a state belongs to who asked for it
    assert elastic.state_dict() == good


def test_a_state_may_have_as_many_components_as_a_module_may(monkeypatch):
    model = build()
    elastic = Elastic(model)
    most = max(elastic.counts().values())
    monkeypatch.setattr(structure_states, "MOST_COMPONENTS", most)
    elastic.load_state_dict(elastic.state_dict())
    monkeypatch.setattr(structure_states, "MOST_COMPONENTS", most - 1)
    with pytest.raises(ValueError, match=rf"components must be a count, got {most} \({most - 1} at most\)"):
        elastic.load_state_dict(elastic.state_dict())


def test_a_module_whose_output_is_not_like_its_input_is_never_emptied():
    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = torch.nn.Linear(12, 8), torch.nn.Linear(8, 3)

    register_family(Narrow, feedforward_layout(norm=None))
    elastic = Elastic(Narrow())
    assert [group.keep for group in elastic.groups({"": [0.0] * 4})] == [1]
    with pytest.raises(ValueError, match="cannot lose all its components"):
        apply_plan(given_plan({"": ()}, {"": 4}), elastic)


def test_groups():
    elastic = Elastic(build(plain.PlainFeedForward, plain.PlainAttention))
    groups = elastic.groups({"branches.0": torch.arange(4.0), "branches.1": [1, 2, 3]})
    assert [(g.name, g.scores) for g in groups] == [("branches.0", (0, 1, 2, 3)), ("branches.1", (1, 2, 3))]
    assert [g.cost for g in groups] == [m.cost for m in elastic.modules.values()]
    with pytest.raises(ValueError, match=r"scores of \['branches.1'\] are missing"):
        elastic.groups({"branches.0": [1] * 4})
    with pytest.raises(ValueError, match=r"branches.0 has 4 components, got 3"):
        elastic.groups({"branches.0": [1] * 3, "branches.1": [1] * 3})


def test_register_family_wants_a_module_class():
    with pytest.raises(TypeError, match=r"must be a subclass of nn.Module"):
        register_family(int, feedforward_layout())
    with pytest.raises(ValueError, match=r"must be a dotted path such as 'package.module.Class': 'Mlp'"):
        register_family("Mlp", feedforward_layout())


@pytest.mark.parametrize("layout", [{"up.weight": "(C u) d"}, [feedforward_layout(), 4], (feedforward_layout(), 4.0)])
def test_what_is_no_layout_is_refused(layout):
    module = nn.Linear(4, 4)
    with pytest.raises(
        TypeError, match="register_family: layout must be a ComponentLayout, a pair of one and a number"
    ):
        register_family(module, layout)
    register_family(module, lambda _: layout)
    with pytest.raises(TypeError, match="Linear: what the function given as layout returns must be a ComponentLayout"):
        Elastic(module)
