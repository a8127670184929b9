"""Training across an edit with every optimizer of torch.optim, and with what training loops put around one."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmao_kernels.structure import Elastic, Scores, apply_plan, register_weight_copy
from tests.structure import plain
from tests.structure.plain import build, double_first, drop_second, inputs, mixed, plan_for, train

optim = torch.optim
OPTIMIZERS = {
    "adamw": partial(optim.AdamW, lr=1e-2),
    "adamw foreach": partial(optim.AdamW, lr=1e-2, foreach=True),
    "adamw fused": partial(optim.AdamW, lr=1e-2, fused=True),
    "adam amsgrad": partial(optim.Adam, lr=1e-2, amsgrad=True),
    "adam amsgrad fused": partial(optim.Adam, lr=1e-2, amsgrad=True, fused=True),
    "sgd": partial(optim.SGD, lr=1e-2),
    "sgd momentum": partial(optim.SGD, lr=1e-2, momentum=0.9, dampening=0.1, weight_decay=1e-3),
    "sgd nesterov fused": partial(optim.SGD, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "rmsprop": partial(optim.RMSprop, lr=1e-3, momentum=0.9, centered=True),
    "rmsprop foreach": partial(optim.RMSprop, lr=1e-3, foreach=True),
    "adagrad": partial(optim.Adagrad, lr=1e-2, initial_accumulator_value=0.1),
    "adagrad fused": partial(optim.Adagrad, lr=1e-2, fused=True),
    "nadam": partial(optim.NAdam, lr=1e-2, momentum_decay=1e-3),
    "nadam foreach": partial(optim.NAdam, lr=1e-2, foreach=True),
    "radam": partial(optim.RAdam, lr=1e-2),
    "adamax": partial(optim.Adamax, lr=1e-2),
    "adadelta": partial(optim.Adadelta, lr=1.0),
    "asgd": partial(optim.ASGD, lr=1e-2),
    "rprop": partial(optim.Rprop, lr=1e-3),
}
WIDTH = 6  # hidden units of a component of PlainFeedForward, entries of a head of PackedAttention: 3
PLANS = {"drop": (0, 2, 3), "copy": (0, 0, 1, 2, 3), "mixed": (1, 2, 3, 3)}


def units(sources, width, repeats=1, components=4):
    return [r * width * components + s * width + i for r in range(repeats) for s in sources for i in range(width)]


def axis_and_index(name, sources):
    """What one would cut by hand of a parameter of `model_of`: its axis, and which entries of it stay."""
    hidden, heads = units(sources, WIDTH), units(sources, 3)
    return {
        "branches.0.w1.weight": (0, hidden),
        "branches.0.w1.bias": (0, hidden),
        "branches.0.w2.weight": (1, hidden),
        "branches.1.qkv.weight": (0, units(sources, 3, repeats=3)),
        "branches.1.qkv.bias": (0, units(sources, 3, repeats=3)),
        "branches.1.out.weight": (1, heads),
    }.get(name)


def cut(tensor, name, sources):
    if (place := axis_and_index(name, sources)) is None:
        return tensor.clone()
    return tensor.index_select(place[0], torch.tensor(place[1])).contiguous()


def model_of(seed=0, dtype=torch.float64):
    model = build(plain.PlainFeedForward, plain.PackedAttention, seed=seed, dtype=dtype)
    model.branches[0].dropout.p = 0.0
    return model


def double_train(model, optimizer, steps, seed=0):
    x = inputs(seed, torch.float64, batch=8)
    target = torch.randn(8, 7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("sources", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_edit_equals_the_problem_cut_by_hand(kind, sources):
    model = model_of()
    optimizer = OPTIMIZERS[kind](model.parameters())
    first = double_train(model, optimizer, 5)
    old_weights, old_state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, sources), elastic, optimizer)

    twin = model_of(seed=1)
    Elastic(twin).load_state_dict(elastic.state_dict())  # widths only
    weights = {name: cut(tensor, name, sources) for name, tensor in old_weights.items()}
    if sources != PLANS["drop"]:  # the noise between copies is the edit's own
        weights |= {name: t for name, t in model.state_dict().items() if name.endswith(("w2.weight", "out.weight"))}
    twin.load_state_dict(weights)
    by_hand = OPTIMIZERS[kind](twin.parameters())
    for i, ((name, ours), theirs) in enumerate(zip(old_weights.items(), twin.parameters(), strict=True)):
        per_parameter = old_state["state"].get(i, {})
        moments = {key: v for key, v in per_parameter.items() if getattr(v, "shape", None) == ours.shape}
        state = per_parameter | {key: cut(moment, name, sources) for key, moment in moments.items()}
        if kind == "asgd":  # its average is of weights, and still these themselves
            state["ax"] = theirs.detach().clone()
        by_hand.state[theirs] = state

    losses = double_train(model, optimizer, 5)
    assert losses == double_train(twin, by_hand, 5)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        for key, value in optimizer.state[ours].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(by_hand.state[theirs][key])), (name, key)
    double_train(model, optimizer, 30)
    assert double_train(model, optimizer, 1)[0] < min(losses[0], first[0])


@pytest.mark.parametrize("storage", ["tight", "slots"])
@pytest.mark.parametrize("key", ["z", "slow_buffer", "slow_params", "lookahead_slow_buff", "p0", "of_mine"])
def test_copies_of_the_weights_in_the_state_are_edited_as_an_average(key, storage):
    """And not as a moment: source and copy share what leaves them. Scalars under such a key stay."""
    if key == "of_mine":
        register_weight_copy(key)
    model = model_of()
    optimizer = optim.SGD(model.parameters(), momentum=0.9)
    average = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        optimizer.state[p] = {key: average[name].clone(), "momentum_buffer": average[name].clone(), "ax": 0.5}
    elastic = Elastic(model)
    if storage == "slots":
        elastic.to_slots(2.0, optimizer, [average])
    apply_plan(plan_for(elastic, double_first), elastic, optimizer, [average])
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        assert torch.equal(state[key], average[name])
        assert torch.equal(state["momentum_buffer"], average[name]) == (not name.endswith(("w2.weight", "out.weight")))
        assert state["ax"] == 0.5


def test_what_is_no_key():
    with pytest.raises(ValueError, match="key must be a name in an optimizer's state, got None"):
        register_weight_copy(None)


class ScheduleFree(optim.Optimizer):
    """SGD of Defazio et al., arXiv 2405.15682: between the average and `z` lie the parameters that are trained."""

    def __init__(self, params, lr=0.5, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            share, rate, beta = 1 / (group["k"] + 1), group["lr"], group["beta"]
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, share).add_(p.grad, alpha=rate * (beta * (1 - share) - 1))
                z.sub_(p.grad, alpha=rate)
            group["k"] += 1

    @torch.no_grad()
    def eval(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.lerp_(self.state[p]["z"], 1 - 1 / group["beta"])


def test_growth_preserves_both_functions_of_schedule_free():
    model = model_of()
    optimizer, x = ScheduleFree(model.parameters()), inputs(dtype=torch.float64)
    double_train(model, optimizer, 20)
    grown, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    followed = ScheduleFree(grown.parameters())
    followed.load_state_dict(state)
    elastic = Elastic(grown)
    apply_plan(plan_for(elastic, double_first), elastic, followed)
    for switch in (lambda: None, lambda: (optimizer.eval(), followed.eval())):
        before = model(x)
        switch()
        torch.testing.assert_close(grown(x), model(x))
    assert not torch.allclose(model(x), before)


def estimates(optimizer, parameter):
    """Adafactor's estimate of the squared gradient, per entry."""
    state = optimizer.state[parameter]
    return state["row_var"] @ state["col_var"] / state["row_var"].mean(-2, keepdim=True)


@pytest.mark.parametrize("sources", PLANS.values(), ids=PLANS)
def test_the_factors_of_adafactor(sources):
    """The second moment of every entry that stays is what it was; both factors keep a common mean."""
    model = model_of()
    optimizer = optim.Adafactor(model.parameters(), lr=1e-2)
    losses = double_train(model, optimizer, 5)
    names = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    old = {name: estimates(optimizer, p) for name, p in names.items()}
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, sources), elastic, optimizer)
    for name, p in names.items():
        torch.testing.assert_close(estimates(optimizer, p), cut(old[name], name, sources))
        rows, columns = optimizer.state[p]["row_var"], optimizer.state[p]["col_var"]
        assert (rows.shape, columns.shape) == ((p.shape[0], 1), (1, p.shape[1]))
        torch.testing.assert_close(rows.mean(), columns.mean())
    double_train(model, optimizer, 60)
    assert double_train(model, optimizer, 1)[0] < losses[-1]


@pytest.mark.parametrize("cls", plain.FAMILIES)
def test_adafactor_with_every_family(cls):
    """Among them tensors of three axes; emptied and revived."""
    model = build(cls)
    optimizer = optim.Adafactor(model.parameters(), lr=1e-2)
    train(model, optimizer, 3)
    elastic = Elastic(model)
    for sources in (mixed, (), (-1, -1), double_first):
        apply_plan(plan_for(elastic, sources), elastic, optimizer)
        losses = train(model, optimizer, 3)
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", [optim.Adafactor, optim.Muon])
def test_what_divides_by_the_number_of_entries_passes_over_empty_modules(kind):
    """Also where the edit falls between backward and step: the gradients of what is empty are gone."""
    model = build(plain.PlainFeedForward)
    optimizer = kind([p for p in model.branches.parameters() if p.dim() == 2], lr=1e-2)
    elastic = Elastic(model)
    train(model, optimizer, 1)
    model(inputs()).sum().backward()
    apply_plan(plan_for(elastic, ()), elastic, optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    apply_plan(plan_for(elastic, (-1,)), elastic, optimizer)
    train(model, optimizer, 1)
    assert all(p.isfinite().all() for p in model.parameters())


def changed_by(action, model, *others):
    before = [copy.deepcopy(part.state_dict()) for part in (model, *others)]
    action()
    return [str(b) for b in before] != [str(part.state_dict()) for part in (model, *others)]


def refused(message, action, model, *others):
    def fails():
        with pytest.raises(ValueError, match=message):
            action()

    assert not changed_by(fails, model, *others)


@pytest.mark.parametrize("first", ["elastic", "fixed"])
def test_lbfgs_is_refused(first):
    """Its state hangs at the first parameter, whatever that is, and is about all of them."""
    model = model_of()
    parameters = list(model.parameters())
    optimizer = optim.LBFGS(parameters if first == "elastic" else parameters[::-1], max_iter=3)
    x = inputs(dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    elastic = Elastic(model)
    plan = plan_for(elastic, mixed)
    message = r"apply_plan: LBFGS keeps '\w+' over all"
    refused(message, lambda: apply_plan(plan, elastic, optimizer), model, optimizer)
    refused(message, lambda: elastic.to_slots(2.0, optimizer), model, optimizer)
    other = optim.LBFGS([nn.Parameter(torch.ones(3))])  # of what has no components
    other.step(lambda: (loss := other.param_groups[0]["params"][0].square().sum()).backward() or loss)
    apply_plan(plan, elastic, [other])


def test_groups_frozen_parameters_and_several_optimizers():
    model = build()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("branches.1") and not name.endswith("w1.weight"))
    live = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in live if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in live if p.dim() == 1], "lr": 1e-3},
    ]
    optimizers = [optim.AdamW(groups[:1], lr=1e-2), optim.SGD(groups[1:], lr=1e-2, momentum=0.9)]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    first, _ = (train(model, optimizer, 3)[0] for optimizer in optimizers)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic, optimizers)
    values = [p.detach().clone() for p in frozen]
    for optimizer in optimizers:
        losses = train(model, optimizer, 20)
        assert all(v.shape in (p.shape, ()) for p, s in optimizer.state.items() for v in s.values() if v is not None)
    assert losses[-1] < first
    assert all(torch.equal(p, v) and not p.requires_grad for p, v in zip(frozen, values, strict=True))
    assert optimizers[0].param_groups[0]["weight_decay"] == 0.1


def old_weight_norm(linear):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(linear)


REPARAMETRIZED = {
    "weight_norm": (parametrizations.weight_norm, "parametrized by _WeightNorm; remove"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrized by _SpectralNorm; remove"),
    "orthogonal": (parametrizations.orthogonal, "parametrized by _Orthogonal; remove"),
    "old weight_norm": (old_weight_norm, "w2.weight must be a parameter or a buffer of Linear, but it is a Tensor"),
    "prune": (lambda m: torch_prune.l1_unstructured(m, "weight", 0.5), "must be a parameter .* but it is a Tensor"),
}


@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_weights_that_are_computed_are_refused(kind):
    make, message = REPARAMETRIZED[kind]
    model = build(plain.PlainFeedForward)
    make(model.branches[0].w2)
    refused(message, lambda: Elastic(model), model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("scheme", ["x86", "qnnpack"])
def test_training_for_quantisation(scheme):
    """A scale per channel stays as long as it was; one per tensor does no harm."""
    model = build(plain.PlainFeedForward).train()
    model.qconfig = quantization.get_default_qat_qconfig(scheme)
    quantization.prepare_qat(model, inplace=True)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    if scheme == "x86":
        refused("scales per channel that .* is quantised with cannot follow", lambda: Elastic(model), model)
        return
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic, optimizer)
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]


def test_parametrizations_that_come_after_discovery_are_refused():
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    parametrizations.weight_norm(model.branches[0].w2)
    refused("is parametrized by _WeightNorm", lambda: apply_plan(plan_for(elastic, mixed), elastic), model)
    nn.utils.parametrize.remove_parametrizations(model.branches[0].w2, "weight")
    apply_plan(plan_for(elastic, mixed), elastic)


def test_parametrizations_of_other_modules_do_no_harm():
    model = build(plain.PlainFeedForward)
    parametrizations.weight_norm(model.classify)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic, optimizer)
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]


def test_tied_weights_are_refused():
    model = build(plain.PlainFeedForward)
    model.classify.weight = model.branches[0].w2.weight
    refused(r"w2.weight is tied: branches.0.w2.weight and classify.weight", lambda: Elastic(model), model)


def test_gradients_accumulate_across_an_edit():
    """Half of a batch before, half after: the sum is that of the model cut by hand, its first half cut as well."""
    model, sources = model_of(), PLANS["drop"]
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    model(inputs(1, torch.float64)).square().mean().backward()
    twin = model_of(seed=1)
    expected = {name: cut(p.grad, name, sources) for name, p in model.named_parameters()}
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, sources), elastic, optimizer)
    Elastic(twin).load_state_dict(elastic.state_dict())
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        each(inputs(2, torch.float64)).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected[name] + q.grad)
    optimizer.step()


def test_grad_scaler_skips_infinite_steps_and_scores_stay_sound():
    model = build(dtype=torch.float32)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    elastic = Elastic(model)
    scores = Scores(elastic, beta=0.5)
    x, target = inputs(batch=8), torch.randn(8, 7, 5)

    def step(factor=1.0):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(model(x).float(), target) * factor
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scores.update()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.item(), norm

    losses = [step()[0] for _ in range(4)]
    before, weights, scale = scores.ema.clone(), copy.deepcopy(model.state_dict()), scaler.get_scale()
    _, norm = step(float("inf"))
    assert not norm.isfinite()
    assert torch.equal(scores.ema, before)
    assert all(
        torch.equal(t, weights[n]) for n, t in model.state_dict().items() if "running" not in n and "num" not in n
    )
    assert scaler.get_scale() == scale / 2
    plan = plan_for(elastic, mixed)
    apply_plan(plan, elastic, optimizer)
    scores.follow(plan)
    losses += [step()[0] for _ in range(20)]
    assert losses[-1] < losses[0]
    assert scores.ema.isfinite().all()
    step(float("nan"))
    assert scores.ema.isfinite().all()


@pytest.mark.parametrize("storage", ["tight", "slots"])
def test_an_edit_inside_of_an_autocast_region(storage):
    """Autocast keeps the casts of weights until its region ends."""
    model = build(plain.PlainFeedForward).eval()
    elastic, x = Elastic(model, storage=storage), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
        apply_plan(plan_for(elastic, drop_second), elastic)
        inside = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), inside)


def test_averaged_weights_follow_and_go_on():
    model = model_of()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    x = inputs(dtype=torch.float64)
    for _ in range(3):
        double_train(model, optimizer, 1)
        average.update_parameters(model)
    elastic, old = Elastic(model), average(x)
    apply_plan(plan_for(elastic, double_first), elastic, optimizer, companions=[average])
    torch.testing.assert_close(average(x), old)
    first = F.mse_loss(average(x), model(x)).item()
    for _ in range(3):
        double_train(model, optimizer, 1)
        average.update_parameters(model)
    assert average.n_averaged == 6
    assert first > 0
    assert all(a.shape == p.shape for a, p in zip(average.parameters(), model.parameters(), strict=True))


SCHEDULES = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=10),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "chain": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.StepLR(o, 2)], milestones=[3]
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedulers_do_not_notice(kind):
    rates = []
    for edits in (False, True):
        model = model_of()
        optimizer = optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        scheduler = SCHEDULES[kind](optimizer)
        elastic = Elastic(model)
        rates.append([])
        for step in range(8):
            double_train(model, optimizer, 1)
            scheduler.step(1.0) if kind == "plateau" else scheduler.step()
            rates[-1].append([group["lr"] for group in optimizer.param_groups])
            if edits and step == 3:
                apply_plan(plan_for(elastic, mixed), elastic, optimizer)
    assert rates[0] == rates[1]
