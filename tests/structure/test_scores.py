"""Scores: what is averaged, how it follows an edit, and what cannot spoil it."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import dmao_kernels
from dmao_kernels.structure import ComponentGates, Elastic, Scores, apply_plan, given_plan
from dmao_kernels.structure.elastic import ElasticModule
from tests.structure import plain
from tests.structure.plain import build, inputs, plan_for

SLICED = {  # the published slice, cut by hand: [components, entries]
    plain.PlainFeedForward: lambda m: (m.w1, lambda w: w.reshape(4, -1)),
    plain.PlainConvolution: lambda m: (
        m.pointwise1,
        lambda w: w.reshape(2, 4, -1).transpose(0, 1).reshape(4, -1),
    ),
    plain.PlainAttention: lambda m: (m.out, lambda w: w.reshape(-1, 3, 5).transpose(0, 1).reshape(3, -1)),
    plain.PackedAttention: lambda m: (m.out, lambda w: w.reshape(-1, 4, 3).transpose(0, 1).reshape(4, -1)),
    plain.GatingMLP: lambda m: (m.linear1, lambda w: w.reshape(2, 4, -1).transpose(0, 1).reshape(4, -1)),
}
METRICS = {
    "taylor": lambda w, g: (w * g).abs().mean(1),
    "gradient": lambda w, g: g.abs().mean(1),
    "magnitude": lambda w, g: w.abs().mean(1),
    "signed": lambda w, g: (w * g).mean(1).abs(),
}


def backward(model, seed=0):
    model.zero_grad()
    model(inputs(seed)).square().sum().backward()


@pytest.mark.parametrize("metric", METRICS)
def test_published_slice(metric):
    model = build(*SLICED)
    scores = Scores(Elastic(model), metric, beta=0.9)
    backward(model)
    scores.update()
    for branch, values in zip(model.branches, scores.values().values(), strict=True):
        owner, cut = SLICED[type(branch)](branch)
        expected = 0.1 * METRICS[metric](cut(owner.weight.detach()), cut(owner.weight.grad))
        torch.testing.assert_close(values, expected)


def test_moving_average():
    model = build(plain.PlainFeedForward).eval()
    scores = Scores(Elastic(model), "signed", beta=0.5)
    expected = torch.zeros(4)
    for seed in range(3):
        backward(model, seed)
        scores.update()
        w = model.branches[0].w1.weight
        expected = 0.5 * expected + 0.5 * (w.detach() * w.grad).reshape(4, -1).mean(1)
    torch.testing.assert_close(scores.values()["branches.0"], expected.abs())
    scores.reset()
    assert not scores.values()["branches.0"].any()


def test_whole_component():
    model = build(plain.PlainFeedForward)
    scores = Scores(Elastic(model), scope="component", beta=0.0)
    backward(model)
    scores.update()
    ff = model.branches[0]
    parts = [ff.w1.weight.detach() * ff.w1.weight.grad, (ff.w1.bias.detach() * ff.w1.bias.grad)[:, None],
             (ff.w2.weight.detach() * ff.w2.weight.grad).T]  # fmt: skip
    expected = torch.cat([p.reshape(4, -1).abs() for p in parts], dim=1).mean(1)
    torch.testing.assert_close(scores.values()["branches.0"], expected)


def test_permuting_components_permutes_scores():
    model = build()
    elastic = Elastic(model)
    scores = Scores(elastic, scope="component")
    permuted = copy.deepcopy(model)
    other = Elastic(permuted)
    apply_plan(plan_for(other, lambda c: tuple(reversed(range(c)))), other)
    for module in (*model.modules(), *permuted.modules()):
        if isinstance(module, nn.Dropout):
            module.eval()
    swapped = Scores(other, scope="component")
    for m, s in ((model, scores), (permuted, swapped)):
        backward(m)
        s.update()
    for name, values in scores.values().items():
        torch.testing.assert_close(swapped.values()[name], values.flip(0), rtol=1e-4, atol=1e-9)


def test_not_finite_gradients_leave_scores_alone():
    model = build()
    scores = Scores(Elastic(model), beta=0.5)
    backward(model)
    scores.update()
    before = scores.ema.clone()
    for p in model.parameters():
        p.grad.fill_(torch.nan)
    scores.update()
    assert torch.equal(scores.ema, before)
    backward(model)
    model.branches[0].w1.weight.grad[0, 0] = torch.inf
    scores.update()
    now = scores.ema
    assert now[0] == before[0]
    assert (now[1:4] != before[1:4]).all()


def test_frozen_parameters_and_missing_gradients():
    model = build(plain.PlainFeedForward, plain.PlainFeedForward)
    scores = Scores(Elastic(model), scope="component", beta=0.0)
    backward(model)
    scores.update()
    first = scores.values()
    model.branches[0].w1.weight.requires_grad_(False)
    for p in (*model.branches[0].w2.parameters(), *model.branches[1].parameters()):
        p.requires_grad_(False)
    backward(model)
    scores.update()
    second = scores.values()
    assert torch.equal(second["branches.1"], first["branches.1"])  # nothing of it has a gradient
    bias = model.branches[0].w1.bias
    torch.testing.assert_close(second["branches.0"], (bias.detach() * bias.grad).abs().reshape(4, -1).mean(1))
    model.zero_grad()
    scores.update()
    assert torch.equal(scores.ema, torch.cat(list(second.values())))
    magnitude = Scores(Elastic(model), "magnitude", beta=0.0)
    magnitude.update()
    torch.testing.assert_close(
        magnitude.values()["branches.1"], model.branches[1].w1.weight.detach().abs().reshape(4, -1).mean(1)
    )


def test_scores_follow_their_components():
    model = build(plain.PlainFeedForward, plain.PlainAttention, plain.PackedAttention)
    elastic = Elastic(model)
    scores = Scores(elastic)
    backward(model)
    scores.update()
    old = scores.values()
    plan = given_plan({"branches.0": (1, 1, 3, -1), "branches.1": ()}, elastic.counts())
    apply_plan(plan, elastic)
    with pytest.raises(RuntimeError, match=r"call follow"):
        scores.update()
    scores.follow(plan)
    new = scores.values()
    a = old["branches.0"]
    torch.testing.assert_close(new["branches.0"], torch.stack([a[1], a[1], a[3], (a[1] + a[1] + a[3]) / 3]))
    assert new["branches.1"].shape == (0,)
    assert torch.equal(new["branches.2"], old["branches.2"])
    backward(model)
    scores.update()
    revive = given_plan({"branches.1": (-1,)}, elastic.counts())
    apply_plan(revive, elastic)
    scores.follow(revive)
    assert scores.values()["branches.1"].tolist() == [0.0]
    backward(model)
    scores.update()
    assert scores.ema.isfinite().all()
    with pytest.raises(ValueError, match=r"the plan is not for branches.1 as it is scored"):
        scores.follow(revive)


def test_an_edit_that_keeps_the_counts_must_be_followed_too():
    elastic = Elastic(build())
    scores = Scores(elastic, "magnitude")
    apply_plan(plan_for(elastic, plain.mixed), elastic)
    with pytest.raises(RuntimeError, match=r"call follow\(plan\)"):
        scores.update()


@pytest.mark.parametrize("storage", ["tight", "slots"])
def test_a_structure_that_was_changed_behind_the_scores(storage):
    elastic = Elastic(build(plain.PlainFeedForward), storage=storage)
    scores = Scores(elastic)
    backward(elastic.model)
    scores.update()
    before = scores.values()["branches.0"][:4]
    if storage == "tight":
        elastic.to_slots()
    else:
        elastic.to_tight()
    with pytest.raises(RuntimeError, match=r"call refit\(\) after to_slots\(\) or to_tight\(\)"):
        scores.update()
    scores.refit()
    assert torch.equal(scores.values()["branches.0"][:4], before)
    backward(elastic.model)
    scores.update()


def test_an_edit_by_another_elastic():
    model = build(plain.PlainFeedForward)
    scores, other = Scores(Elastic(model)), Elastic(model)
    apply_plan(plan_for(other, (0, 1)), other)
    backward(model)
    with pytest.raises(
        RuntimeError, match=r"branches.0: w1.weight must have 288 entries, got 144: another controller or"
    ):
        scores.update()


def test_the_table_is_rebuilt_only_when_it_must():
    model = build()
    elastic = Elastic(model)
    scores = Scores(elastic)
    backward(model)
    scores.update()
    table = scores._table
    scores.update()
    assert scores._table is table
    plan = plan_for(elastic, plain.mixed)
    apply_plan(plan, elastic)
    scores.follow(plan)
    backward(model)
    scores.update()
    assert scores._table is not table
    model.branches[0].w1.weight = nn.Parameter(torch.ones_like(model.branches[0].w1.weight))  # a new identity
    backward(model)
    before = scores.ema[0].clone()
    scores.update()
    w = model.branches[0].w1.weight
    expected = 0.99 * before + 0.01 * (w * w.grad)[:6].abs().mean()
    torch.testing.assert_close(scores.ema[0], expected.detach())


class Operators(TorchDispatchMode):
    """Notes the name of every operator that is called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(dmao_kernels.cpu_capability() is None, reason="no native library")
@pytest.mark.parametrize("scope", ["slice", "component"])
def test_one_native_call_scores_everything(scope):
    model = build()
    scores = Scores(Elastic(model), scope=scope)
    backward(model)
    scores.update()
    with Operators() as operators:
        scores.update()
    work = [name for name in operators.called if name not in ("aten::detach", "aten::new_empty")]
    assert work == ["dmao::importance_"]


def test_an_update_never_waits_for_a_value():
    """Fake tensors have no values: whatever would synchronise with a device fails on them."""
    with FakeTensorMode():
        model = plain.Residual(*(cls() for cls in plain.FAMILIES))
        scores = Scores(Elastic(model), scope="component")
        backward(model)
        scores.update()
        with pytest.raises(DataDependentOutputException):
            scores.ema[0].item()


def test_state_round_trip():
    model = build()
    elastic = Elastic(model)
    scores = Scores(elastic)
    backward(model)
    scores.update()
    plan = plan_for(elastic, plain.mixed)
    apply_plan(plan, elastic)
    scores.follow(plan)
    state = scores.state_dict()
    other = build()
    again = Elastic(other)
    loaded = Scores(again)
    with pytest.raises(ValueError, match=r"counts must be"):
        loaded.load_state_dict({**state, "counts": {}})
    again.load_state_dict(elastic.state_dict())
    loaded.load_state_dict(state)
    other.load_state_dict(model.state_dict())
    assert torch.equal(loaded.ema, scores.ema)
    assert loaded.updates == 1
    for m, s in ((model.eval(), scores), (other.eval(), loaded)):
        backward(m)
        s.update()
    assert torch.equal(loaded.ema, scores.ema)
    with pytest.raises(ValueError, match=r"metric must be signed, got taylor"):
        Scores(elastic, "signed").load_state_dict(state)
    with pytest.raises(ValueError, match=r"ema has the shape"):
        loaded.load_state_dict({**state, "ema": torch.zeros(3)})


def test_wrong_arguments():
    elastic = Elastic(build(plain.PlainFeedForward))
    for arguments, message in (
        ({"metric": "best"}, "metric must be"),
        ({"scope": "all"}, "scope must be"),
        ({"beta": 1.0}, "beta must be"),
        ({"metric": "gate"}, r"needs ComponentGates\(elastic\) first"),
    ):
        with pytest.raises(ValueError, match=message):
            Scores(elastic, **arguments)
    ComponentGates(elastic)
    Scores(elastic, "gate")


def test_scores_go_where_the_model_goes():
    """Frameworks move a model to its device after their callbacks were made."""
    model = build()
    scores = Scores(Elastic(model))
    model.to("meta")
    tensors, arguments = scores.begin_update()
    assert {t.device.type for t in (*tensors, arguments["ema"], arguments["inverse_count"])} == {"meta"}


def test_scores_go_with_parameters_that_stay_the_same_objects(monkeypatch):
    """As on the way to a GPU, where a module keeps its parameters and gives them other data."""
    scores = Scores(Elastic(build()))
    monkeypatch.setattr(ElasticModule, "device", torch.device("meta"))
    _, arguments = scores.begin_update()
    assert arguments["ema"].device == arguments["inverse_count"].device == torch.device("meta")
