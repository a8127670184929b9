"""Edits: what they carry along, and that they happen wholly or not at all."""

import copy
import itertools
import time

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dmao_kernels.structure import Elastic, apply_plan, copy_cosines, edit, follow_copies, gather, given_plan
from dmao_kernels.structure.targets import check_companions
from tests.structure import plain
from tests.structure.plain import D, build, double_first, drop_second, inputs, mixed, plan_for, train


def state(model, optimizer=None):
    """Everything that an edit may touch, as comparable values."""
    tensors = {f"{n}": t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    tensors |= {f"{n}.grad": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    if optimizer is not None:
        for i, per_parameter in enumerate(optimizer.state.values()):
            tensors |= {f"{i}.{k}": torch.as_tensor(v).clone() for k, v in per_parameter.items()}
    attributes = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | float | tuple | bool) or key == "forward":
                attributes[f"{name}.{key}"] = type(value) if key == "forward" else value
    return tensors, attributes


def same(a, b):
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(t, b[0][n]) for n, t in a[0].items())


def test_an_old_loss_that_is_still_alive_does_no_harm():
    model, x = build(), inputs()
    elastic = Elastic(model)
    loss = model(x).sum()
    loss.backward()
    apply_plan(plan_for(elastic, double_first), elastic)
    model(x).sum().backward()  # fails where the parameter keeps the old graph's accumulator
    assert all(p.grad.shape == p.shape for p in model.parameters())
    assert loss.grad_fn is not None


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "sgd without momentum": lambda p: torch.optim.SGD(p, lr=1e-2),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_follows_its_components(kind):
    model = build()
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1]},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]  # fmt: skip
    optimizer = OPTIMIZERS[kind](groups)
    train(model, optimizer, 3)
    order = [[id(p) for p in g["params"]] for g in optimizer.param_groups]
    elastic = Elastic(model)
    old = {
        (m.name, n, k): m.view(n, v).clone()
        for m in elastic.modules.values()
        for n, t in m.tensors()
        for k, v in {**optimizer.state.get(t, {}), "grad": t.grad}.items()
        if isinstance(v, torch.Tensor) and v.dim()
    }
    steps = [float(s["step"]) for s in optimizer.state.values() if "step" in s]
    plan = plan_for(elastic, mixed)
    apply_plan(plan, elastic, optimizer)
    assert order == [[id(p) for p in g["params"]] for g in optimizer.param_groups]
    assert steps == [float(s["step"]) for s in optimizer.state.values() if "step" in s]
    assert old
    for (name, n, k), before in old.items():
        m = elastic.modules[name]
        tensor = m.place(n).tensor
        now = m.view(n, tensor.grad if k == "grad" else optimizer.state[tensor][k])
        assert torch.equal(now, before[:, list(plan.sources[name])]), (name, n, k)
    train(model, optimizer, 2)


def test_training_goes_on_as_on_the_physically_equal_model():
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 3)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic, optimizer)
    twin = build(seed=9)
    other = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    Elastic(twin).load_state_dict(elastic.state_dict())
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.manual_seed(1)
    losses = train(model, optimizer, 3)
    torch.manual_seed(1)
    assert train(twin, other, 3) == losses


def test_plain_halves_stay_equal_and_asymmetric_copies_diverge():
    cosines = {}
    for split in ("halves", "asymmetric"):
        model = build(plain.PlainFeedForward, plain.LinearConvolution, plain.PackedAttention)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        train(model, optimizer, 5)
        elastic = Elastic(model)
        report = apply_plan(plan_for(elastic, double_first, seed=3), elastic, optimizer, split=split)
        start = copy_cosines(elastic, report.copies)
        assert all(c == pytest.approx(1.0) for sides in start.values() for c in sides["input"])
        train(model, optimizer, 100)
        cosines[split] = copy_cosines(elastic, report.copies)
    for name, sides in cosines["halves"].items():
        assert min(sides["input"] + sides["output"]) > 0.9999, name
    for name, sides in cosines["asymmetric"].items():
        assert max(sides["input"] + sides["output"]) < 0.97, name


def test_copies_are_followed_through_later_edits():
    counts = {"a": 5, "b": 4}
    plan = given_plan({"a": (0, 2, 2, 3), "b": (2, 1, 1, 0)}, counts)
    assert follow_copies({"a": ((0, 1), (2, 3))}, plan) == {"a": ((1, 3),)}
    assert follow_copies({"b": ((1, 2),)}, plan) == {"b": ((1, 0),)}
    assert follow_copies({"c": ((0, 1),)}, plan) == {"c": ((0, 1),)}  # the plan leaves it alone


def test_the_noise_comes_from_the_plan():
    results = []
    for seed in (1, 1, 2):
        model = build()
        elastic = Elastic(model)
        apply_plan(plan_for(elastic, double_first, seed=seed), elastic)
        results.append(state(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_the_spread_of_the_split_is_the_components_own():
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    weight = model.branches[0].w2.weight.detach()
    old = weight[:, :6].clone()
    bias, norm = model.branches[0].w2.bias.clone(), model.branches[0].norm.weight.clone()
    apply_plan(plan_for(elastic, double_first), elastic)
    new = model.branches[0].w2.weight.detach()
    noise = new[:, :6] - old / 2
    assert noise.std() == pytest.approx(old.std().item(), rel=0.3)
    torch.testing.assert_close(new[:, :6] + new[:, 6:12], old)
    assert torch.equal(model.branches[0].w2.bias, bias)
    assert torch.equal(model.branches[0].norm.weight, norm)


def test_companions_follow_with_the_same_noise():
    model = build()
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    table = {n: t.detach().clone() for n, t in model.state_dict().items()}
    clone = copy.deepcopy(model)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic, companions=[average, table, clone])
    assert same(state(model), state(clone))
    assert same(state(model), state(average.module))
    assert all(torch.equal(t, table[n]) for n, t in model.state_dict().items())
    average.update_parameters(model)
    apply_plan(plan_for(elastic, ()), elastic, companions=[average, table, clone])
    x = inputs()
    assert torch.equal(clone.eval()(x), model.eval()(x))
    apply_plan(plan_for(elastic, (-1,)), elastic, companions=[average, table, clone])  # revived in silence
    for name in ("branches.0.w2", "branches.3.out", "branches.5.linear2"):
        for value in (model.get_submodule(name).bias, average.module.get_submodule(name).bias, table[f"{name}.bias"]):
            assert not value.any(), name
    assert same(state(model), state(clone))


class Special(torch.Tensor):
    pass


def test_companions_that_do_not_fit():
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    plan = plan_for(elastic, double_first)
    other, without_bias = copy.deepcopy(model), copy.deepcopy(model)
    apply_plan(plan_for(Elastic(other), drop_second), Elastic(other))
    without_bias.branches[0].w1.bias = None
    cases = [
        (model, "got the model itself"),
        (nn.Linear(2, 2), "has no module branches.0"),
        ({}, "has no branches.0.w1.weight"),
        (other, "must have the shape"),
        ({n: t[:1] for n, t in model.state_dict().items()}, "must be strided and of shape"),
        ({n: t.as_subclass(Special) for n, t in model.state_dict().items()}, "must be a plain tensor, got Special"),
        (without_bias, "w1.bias is None in a companion, but not in the model"),
    ]
    before = state(model)
    for companion, message in cases:
        with pytest.raises(ValueError, match=message):  # though another one fits
            apply_plan(plan, elastic, companions=[copy.deepcopy(model), dict(model.state_dict()), companion])
    assert same(state(model), before)


class Distributed(nn.parallel.DistributedDataParallel):
    """Without processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


def test_companions_are_looked_at_before_the_training():
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    average = torch.compile(Distributed(AveragedModel(model)), backend="eager")
    check_companions(elastic, [copy.deepcopy(model), dict(model.state_dict()), average], in_place=False)
    cases = [
        (torch.compile(model, backend="eager"), ValueError, "got the model itself"),
        (nn.Linear(2, 2), ValueError, "has no module branches.0"),
        ({}, ValueError, "has no branches.0.w1.weight"),
        (3, TypeError, "must be modules, or mappings from names to tensors, got a int"),
    ]
    for companion, kind, message in cases:
        with pytest.raises(kind, match=message):
            check_companions(elastic, [copy.deepcopy(model), companion], in_place=False)
    with pytest.raises(TypeError, match=r"companions must be a list such as \[average\], got a PlainFeedForward"):
        check_companions(elastic, plain.PlainFeedForward(), in_place=False)
    check_companions(elastic, [copy.deepcopy(model)], in_place=True)
    elsewhere = copy.deepcopy(model).to("meta")
    check_companions(elastic, [elsewhere], in_place=False)
    with pytest.raises(ValueError, match=r"companions must be on the model's device in slots storage, cpu, got .*meta"):
        check_companions(elastic, [elsewhere], in_place=True)


def test_an_average_inside_of_the_model_is_refused():
    model = nn.Module()
    model.student = build(plain.PlainFeedForward)
    model.of_what_has_no_components = AveragedModel(nn.Linear(2, 2))
    check_companions(Elastic(model), [], in_place=False)
    model.ema = AveragedModel(model.student)
    with pytest.raises(ValueError, match=r"must lie outside of the model, but ema \(AveragedModel\) is a part of it"):
        check_companions(Elastic(model), [], in_place=False)
    check_companions(Elastic(model.student), [model.ema], in_place=False)
    model.ema.requires_grad_(False)
    with pytest.raises(ValueError, match=r"ema \(AveragedModel\) is a part of it: give the part that is trained alone"):
        check_companions(Elastic(model), [], in_place=False)


def test_attributes_and_dropout_follow():
    model = build()
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, lambda c: (0, 0, 1)), elastic)
    ff, conv, _, attention, packed, _ = model.branches
    assert (ff.w1.out_features, ff.w2.in_features) == (18, 18)
    assert (conv.depthwise.groups, conv.depthwise.in_channels, conv.depthwise_norm.num_features) == (9, 9, 9)
    assert (attention.heads, packed.heads, packed.qkv.out_features) == (3, 3, 27)
    assert ff.dropout.p == pytest.approx(0.1 * 3 / 4)
    for _ in range(6):
        apply_plan(plan_for(elastic, lambda c: tuple(sorted([*range(c)] * 2))), elastic)
    assert 0 < edit.MAX_DROPOUT == ff.dropout.p < 1


def test_the_moments_of_an_output_bias_begin_anew_with_its_module():
    model = build(plain.PlainFeedForward)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    elastic = Elastic(model)
    for sources in ((), (-1,)):
        apply_plan(plan_for(elastic, sources), elastic, optimizer)
    state = optimizer.state[model.branches[0].w2.bias]
    assert state["step"] == 2
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()


def test_the_shape_of_a_layer_norm_follows():
    model = build(plain.NormedFeedForward)
    apply_plan(plan_for(elastic := Elastic(model), drop_second), elastic)
    assert model.branches[0].inner.normalized_shape == (18,)
    assert model(inputs()).shape == (2, 7, 5)


def test_fresh_optimizer_state_is_zero():
    model = build(plain.PlainFeedForward)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, (1, -1)), elastic, optimizer)
    moment = optimizer.state[model.branches[0].w1.weight]["exp_avg"]
    assert moment[:6].any()
    assert not moment[6:].any()


def test_frozen_missing_and_strided_parameters():
    model = build(plain.PlainFeedForward)
    ff = model.branches[0]
    ff.w1.weight.requires_grad_(False)
    ff.w2.weight = nn.Parameter(torch.randn(24, D).t())
    assert not ff.w2.weight.is_contiguous()
    expected = ff.w2.weight[:, [6, 7, 8, 9, 10, 11]].clone()
    elastic = Elastic(model)
    model(inputs()).sum().backward()
    ff.w2.weight.grad = torch.randn(24, D).t()
    grad = ff.w2.weight.grad.clone()
    apply_plan(plan_for(elastic, (1,)), elastic)
    assert torch.equal(ff.w2.weight, expected)
    assert torch.equal(ff.w2.weight.grad, grad[:, 6:12])
    assert not ff.w1.weight.requires_grad
    assert ff.w1.weight.grad is None
    assert ff.w1.weight.shape == (6, D)


def test_sparse_gradients_are_refused():
    model = build(plain.PlainFeedForward)
    weight = model.branches[0].w1.weight
    weight.grad = torch.ones_like(weight).to_sparse()
    with pytest.raises(ValueError, match=r"w1.weight: its gradient must be strided .* got torch.sparse_coo"):
        apply_plan(plan_for(Elastic(model), double_first), Elastic(model))


def test_a_missing_bias_is_passed_over():
    model = plain.Residual(plain.PlainFeedForward(bias=False))
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, (1,)), elastic)
    assert model.branches[0].w1.bias is None
    assert elastic.modules["branches.0"].own_cost == 2 * 6 * D


def test_wrong_plans_change_nothing():
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    before = state(model)
    with pytest.raises(ValueError, match="no elastic module other"):
        apply_plan(given_plan({"other": (0,)}, {"other": 1}), elastic)
    with pytest.raises(ValueError, match=r"made for 3 components of branches.0, which has 4 now"):
        apply_plan(given_plan({"branches.0": (0,)}, {"branches.0": 3}), elastic)
    with pytest.raises(ValueError, match="split must be one of"):
        apply_plan(plan_for(elastic, (0,)), elastic, split="half")
    assert same(state(model), before)
    model.branches[0].w1.weight.data = torch.zeros(20, D)
    with pytest.raises(ValueError, match=r"branches.0: w1.weight must have the shape \[24, 12\].*got \[20, 12\]"):
        apply_plan(plan_for(elastic, (0,)), elastic)


def test_optimizer_state_that_cannot_follow():
    model = build(plain.PlainFeedForward)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    optimizer.state[model.branches[0].w1.weight]["blocks"] = torch.ones(9)
    before = state(model, optimizer)
    with pytest.raises(
        ValueError, match=r"w1.weight: optimizer state 'blocks' must be a scalar .* got shape \[9\]: it cannot follow"
    ):
        apply_plan(plan_for(Elastic(model), double_first), Elastic(model), optimizer)
    assert same(state(model, optimizer), before)


STAGES = [
    "moved",
    "weights_index",
    "share",
    "_replace",
    "set_attribute",
    "set_empty",
    "draw",
    "fresh_values",
    "copied",
]


@pytest.mark.parametrize(("stage", "call"), [*itertools.product(STAGES, [1, 2, 4]), ("gather_components", 1)])
def test_an_edit_that_fails_leaves_everything_as_it_was(stage, call, monkeypatch):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    clone = copy.deepcopy(model)
    elastic = Elastic(model)
    apply_plan(given_plan({"branches.0": ()}, {"branches.0": 4}), elastic, optimizer, [clone])
    sources = {n: (0, 0, -1) if c else (-1,) for n, c in elastic.counts().items()}
    sources["branches.1"] = ()
    plan = given_plan(sources, elastic.counts())
    before, before_clone, counts = state(model, optimizer), state(clone), elastic.counts()
    owner = gather if stage == "gather_components" else edit
    whole = getattr(owner, stage)
    calls = 0

    def fails(*arguments):
        nonlocal calls
        calls += 1
        if calls == call:
            if stage == "_replace":
                arguments[0].grad = None  # half-way
            raise RuntimeError("injected")
        return whole(*arguments)

    monkeypatch.setattr(owner, stage, fails)
    with pytest.raises(RuntimeError, match="injected"):
        apply_plan(plan, elastic, optimizer, [clone])
    assert same(state(model, optimizer), before)
    assert same(state(clone), before_clone)
    assert elastic.counts() == counts
    monkeypatch.undo()
    apply_plan(plan, elastic, optimizer, [clone])
    assert not same(state(model, optimizer), before)
    model(inputs()).sum().backward()


def test_the_report_tells_what_was_done():
    model = build(plain.PlainFeedForward, plain.PlainAttention, plain.GatingMLP)
    elastic = Elastic(model)
    apply_plan(given_plan({"branches.1": ()}, elastic.counts()), elastic)
    before = elastic.live_parameters()
    start = time.perf_counter()
    plan = given_plan({"branches.0": (0, 0, 2, 3), "branches.1": (-1,), "branches.2": (0, 1, 2, 3)}, elastic.counts())
    report = apply_plan(plan, elastic)
    assert report.copies == {"branches.0": ((0, 1),)}
    assert report.dropped == {"branches.0": (1,)}
    assert report.fresh == {"branches.1": (0,)}
    assert (report.before, report.after) == (before, elastic.live_parameters())
    assert report.before != report.after
    assert 0 < report.seconds <= time.perf_counter() - start


def test_a_bias_behind_a_module_with_one_component_stays():
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, (2,)), elastic)
    bias = model.branches[0].w2.bias.clone()
    apply_plan(plan_for(elastic, (0, 0)), elastic)
    assert torch.equal(model.branches[0].w2.bias, bias)
    assert bias.any()


def test_modules_that_are_revived_together_do_not_begin_alike():
    model = nn.Sequential(*(plain.PlainFeedForward() for _ in range(2)))
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, ()), elastic)
    apply_plan(plan_for(elastic, (-1,)), elastic)
    first, second = (m.w1.weight for m in model)
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_copies_and_fresh_components_in_one_event():
    model = build(plain.PlainFeedForward, plain.LinearConvolution)
    ff, conv = model.branches
    old = ff.w2.weight.detach().clone()
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, (0, 0, 1, 2, 3, -1)), elastic)
    new = ff.w2.weight.detach()
    torch.testing.assert_close(new[:, :6] + new[:, 6:12], old[:, :6])
    assert torch.equal(new[:, 12:30], old[:, 6:])
    assert not new[:, 30:].any()
    assert conv.depthwise_norm.statistics_weight.tolist() == [0.5, 0.5, 1, 1, 1, 1]


def test_copies_may_lack_the_output_bias():
    model = build(plain.PlainFeedForward)
    clone, table = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    clone.branches[0].w2.bias = None
    del table["branches.0.w2.bias"]
    elastic = Elastic(model)
    for sources in ((), (-1,)):
        apply_plan(plan_for(elastic, sources), elastic, companions=[clone, table])
    assert clone.branches[0].w2.bias is None
    assert torch.equal(clone.branches[0].w1.weight, model.branches[0].w1.weight)
    assert torch.equal(table["branches.0.w1.weight"], model.branches[0].w1.weight)
