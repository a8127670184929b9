"""ScoringAdamW: torch.optim.AdamW and Scores.update(), in one pass."""

import copy
import io

import pytest
import torch
from torch import nn

from dmao_kernels.structure import ComponentGates, Elastic, Scores, ScoringAdamW, apply_plan
from tests.structure import plain
from tests.structure.plain import build, inputs, mixed, plan_for, train

OPTIONS = {
    "lr": 1e-2,
    "betas": (0.8, 0.99),
    "eps": 1e-3,
    "weight_decay": 0.1,
}  # eps: some gradients are nothing but rounding


def groups(model):
    """Two groups of other options; the first parameter is in none."""
    _, *rest = model.parameters()
    return [{"params": rest[::2]}, {"params": rest[1::2], "lr": 3e-3, "weight_decay": 0.0, "maximize": True}]


def pair(optimizer_class=torch.optim.AdamW, dtype=torch.float32, **options):
    """The same model twice, one under ScoringAdamW, one under another class."""
    one, two = build(dtype=dtype), build(dtype=dtype)
    options = {**OPTIONS, **options}
    return one, ScoringAdamW(groups(one), **options), two, optimizer_class(groups(two), **options)


def learn(model, optimizer, steps=1, seed=0, **arguments):
    for step in range(steps):
        model.zero_grad()
        dtype = next(model.parameters()).dtype
        torch.manual_seed(step)
        model(inputs(seed + step, dtype)).square().mean().backward()
        optimizer.step(**arguments)


def assert_same(one, two, **tolerance):
    torch.testing.assert_close(one.state_dict(), two.state_dict(), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_as_adamw_does(dtype):
    one, ours, two, torchs = pair(dtype=dtype)
    learn(one, ours, 3)
    learn(two, torchs, 3)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    assert_same(one, two, **tolerance)
    assert not torch.equal(one.classify.weight, build(dtype=dtype).classify.weight)


@pytest.mark.parametrize("metric", ["taylor", "gradient", "magnitude", "signed", "gate"])
@pytest.mark.parametrize("scope", ["slice", "component"])
def test_scores_are_those_of_update(metric, scope):
    """To the bit, and the update is the one without scores."""
    results = []
    for fused in (True, False):
        model = build()
        elastic = Elastic(model)
        if metric == "gate":
            ComponentGates(elastic)
        optimizer = ScoringAdamW(groups(model), **OPTIONS)
        scores = Scores(elastic, metric, scope, beta=0.9, every=2)
        if fused:
            optimizer.scores = scores
        else:
            optimizer.register_step_pre_hook(lambda *_, scores=scores: scores.update())
        learn(model, optimizer, 5)
        assert (scores.calls, scores.updates) == (5, 3)
        results.append((scores.ema, model.state_dict()))
    assert results[0][0].all()
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=0)


def test_what_is_not_updated_is_scored():
    """Parameters that the optimizer does not have, and frozen ones; those without a gradient keep their score."""
    model = build(plain.PlainFeedForward, plain.PlainFeedForward, plain.PlainFeedForward)
    mine, foreign, unused = model.branches
    scores = Scores(Elastic(model), beta=0.5)
    optimizer = ScoringAdamW(mine.parameters(), scores=scores)
    model(inputs()).square().sum().backward()
    for parameter in unused.parameters():
        parameter.grad = None
    expected = [0.5 * (m.w1.weight.detach() * m.w1.weight.grad).abs().reshape(4, -1).mean(1) for m in (mine, foreign)]
    before = foreign.w1.weight.clone()
    optimizer.step()
    values = list(scores.values().values())
    torch.testing.assert_close(values[:2], expected)
    assert not values[2].any()
    assert torch.equal(foreign.w1.weight, before)
    assert set(optimizer.state) == set(mine.parameters())


def test_grad_factor_is_clipping():
    one, ours, two, theirs = pair(ScoringAdamW)
    ours.scores, theirs.scores = Scores(Elastic(one)), Scores(Elastic(two))
    learn(one, ours, grad_factor=torch.tensor(0.25))
    model_of_scaled = two
    model_of_scaled.zero_grad()
    torch.manual_seed(0)
    model_of_scaled(inputs()).square().mean().backward()
    theirs.scores.update()
    theirs.scores, scores = None, theirs.scores
    for parameter in two.parameters():
        parameter.grad *= 0.25
    theirs.step()
    assert_same(one, two, rtol=0, atol=0)
    assert torch.equal(ours.scores.ema, scores.ema)


@pytest.mark.parametrize("fused", [False, True])
def test_state_dicts_are_interchangeable(fused):
    """Each continues from the other's."""
    one, ours, two, torchs = pair(lambda *a, **k: torch.optim.AdamW(*a, fused=fused, **k))
    learn(one, ours, 2)
    learn(two, torchs, 2)
    saved = copy.deepcopy(ours.state_dict())  # loading shares tensors
    assert saved["state"].keys() == torchs.state_dict()["state"].keys()
    for index, state in saved["state"].items():
        theirs = torchs.state_dict()["state"][index]
        assert list(state) == list(theirs)
        assert [(t.dtype, t.shape) for t in state.values()] == [(t.dtype, t.shape) for t in theirs.values()]
    two.load_state_dict(one.state_dict())
    torchs.load_state_dict(saved)
    fresh = build()
    fresh.load_state_dict(one.state_dict())
    back = ScoringAdamW(groups(fresh))
    file = io.BytesIO()
    torch.save(torchs.state_dict(), file)
    file.seek(0)
    back.load_state_dict(torch.load(file))
    for model, optimizer in ((one, ours), (two, torchs), (fresh, back)):
        learn(model, optimizer, 2, seed=7)
    assert_same(fresh, one, rtol=0, atol=0)
    assert_same(two, one, rtol=1e-4, atol=1e-5)


def test_follows_an_edit():
    model = build()
    elastic = Elastic(model)
    scores = Scores(elastic)
    optimizer = ScoringAdamW(model.parameters(), scores=scores)
    learn(model, optimizer, 2)
    moment = optimizer.state[model.branches[0].w2.weight]["exp_avg"].clone()
    plan = plan_for(elastic, mixed)
    apply_plan(plan, elastic, optimizer)
    with pytest.raises(RuntimeError, match=r"call follow\(plan\)"):
        learn(model, optimizer)
    scores.follow(plan)
    assert torch.equal(optimizer.state[model.branches[0].w2.weight]["exp_avg"][:, :6], moment[:, 6:12])
    losses = train(model, optimizer, 20)
    assert losses[-1] < 0.9 * losses[0]


def test_closure_and_scheduler():
    model = build(plain.PlainFeedForward)
    optimizer = ScoringAdamW(model.parameters(), lr=torch.tensor(1e-2))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs()).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(5):
        losses.append(optimizer.step(closure).item())
        scheduler.step()
    assert losses[-1] < losses[0]
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-2 / 32)


def test_grad_scaler():
    """It unscales and skips by itself."""
    one, ours, two, plain_one = pair(ScoringAdamW)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for seed in range(2):
        torch.manual_seed(seed)
        scaler.scale(one(inputs(seed)).square().mean()).backward()
        scaler.step(ours)
        scaler.update()
        ours.zero_grad()
    one.classify.weight.grad = torch.full_like(one.classify.weight, torch.inf)
    scaler.step(ours)
    scaler.update()
    for seed in range(2):
        torch.manual_seed(seed)
        two(inputs(seed)).square().mean().backward()
        plain_one.step()
        plain_one.zero_grad()
    assert_same(one, two)


def test_copies_keep_their_scores():
    model = build(plain.PlainFeedForward)
    optimizer = ScoringAdamW(model.parameters(), scores=Scores(Elastic(model)))
    learn(model, optimizer)
    assert copy.copy(optimizer).scores is optimizer.scores
    both = copy.deepcopy({"model": model, "optimizer": optimizer})
    assert both["optimizer"].scores.elastic.model is both["model"]
    learn(both["model"], both["optimizer"])
    assert (both["optimizer"].scores.updates, optimizer.scores.updates) == (2, 1)


def test_an_old_graph_notices():
    model = build(plain.PlainFeedForward)
    optimizer = ScoringAdamW(model.parameters())
    loss = model(inputs()).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_to_do():
    model = build(plain.PlainFeedForward)
    optimizer = ScoringAdamW(model.parameters())
    assert optimizer.step() is None
    assert not optimizer.state


def test_what_is_refused():
    model = build(plain.PlainFeedForward)
    with pytest.raises(TypeError, match="amsgrad"):
        ScoringAdamW(model.parameters(), amsgrad=True)
    for option in ("amsgrad", "capturable", "differentiable"):
        optimizer = ScoringAdamW([{"params": list(model.parameters()), option: True}])
        with pytest.raises(ValueError, match=f"^ScoringAdamW: {option} is not supported; torch.optim.AdamW has it"):
            learn(model, optimizer)
    sparse = nn.Embedding(4, 3, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"^ScoringAdamW: gradients must be dense"):
        ScoringAdamW(sparse.parameters()).step()
    double = build(plain.PlainFeedForward, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"params\[0\] must be contiguous float32, bfloat16 or float16, got float64"):
        learn(double, ScoringAdamW(double.parameters()))
