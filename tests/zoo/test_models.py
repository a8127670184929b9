"""On models of real packages: growth preserves the function, a drop is exact, training goes on, accelerate agrees."""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dmao.controller import GrowAndDrop
from dmao.schedule import Schedule
from torch import Tensor, nn

import dmao_kernels
from dmao_kernels.structure import Elastic, ElasticModule, apply_plan, discover, given_plan
from tests.zoo.models import REAL, SMALL, ZOO, Entry, Size

every_model = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)


def build(entry: Entry, size: Size = SMALL) -> nn.Module:
    torch.manual_seed(0)
    model = entry.build(size)
    with torch.no_grad():  # away from initial values that hide errors: zero biases, unit norms
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    if entry.discovered:
        discover(model, entry.inputs(size))
    return model.eval()


def run(entry: Entry, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return entry.output(model(*entry.inputs(SMALL)))


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, in terms of the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def edit(elastic: Elastic, **sources: tuple[int, ...]) -> None:
    before = elastic.counts()
    apply_plan(given_plan({name: sources.get(name, range(n)) for name, n in before.items()}, before), elastic)


def channel_norms(m: ElasticModule) -> list[nn.Module]:
    """The norms whose statistics run over the channels of all components."""
    names = [n.rpartition(".")[0] for n in m.layout.attributes if n.endswith(("normalized_shape", "num_channels"))]
    return [m.module.get_submodule(name) for name in names]


@every_model
def test_what_is_elastic(entry: Entry, table: dict) -> None:
    model = build(entry)
    before = run(entry, model)
    elastic = Elastic(model)
    assert Counter(m.layout.family for m in elastic.modules.values()) == {
        family: n * SMALL.layers for family, n in entry.elastic.items()
    }
    assert elastic.refused == {}
    assert torch.equal(run(entry, model), before)
    total = sum(p.numel() for p in model.parameters())
    assert elastic.live_parameters() == total
    table.setdefault(entry.name, {}).update(
        {
            "parameters": f"{total:,}",
            "elastic modules": str(len(elastic.modules)),
            "elastic share": f"{100 * (1 - elastic.fixed_parameters() / total):.0f} %",
        }
    )


@every_model
def test_growth_preserves_the_function(entry: Entry, table: dict) -> None:
    model = build(entry)
    before = run(entry, model)
    elastic = Elastic(model)
    # A norm over all channels tells a copied one by its statistics, all copied ones not.
    exact = {name: (0, 1, 1, *range(2, m.components)) for name, m in elastic.modules.items() if not channel_norms(m)}
    edit(elastic, **exact)
    once = error(run(entry, model), before)
    edit(elastic, **{name: tuple(j for j in range(n) for _ in (0, 1)) for name, n in elastic.counts().items()})
    twice = error(run(entry, model), before)
    assert max(once, twice) < 1e-4
    assert sum(p.numel() for p in model.parameters()) > 1.5 * sum(p.numel() for p in build(entry).parameters())
    table.setdefault(entry.name, {})["error of copies"] = f"{max(once, twice):.0e}"


@every_model
def test_a_drop_leaves_what_the_rest_computes(entry: Entry, table: dict) -> None:
    """The oracle has all components; the output weights of the dropped are zero, norms pass over their channels."""
    pruned = build(entry)
    oracle = copy.deepcopy(pruned)
    elastic, whole = Elastic(pruned), Elastic(oracle)
    sources = {name: tuple(j for j in range(n) if j != i % n) for i, (name, n) in enumerate(elastic.counts().items())}
    for name, m in whole.modules.items():
        silence(m, set(range(m.components)) - set(sources[name]))
    edit(elastic, **sources)
    found = error(run(entry, pruned), run(entry, oracle))
    assert found < 1e-4
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in oracle.parameters())
    table.setdefault(entry.name, {})["error of drops"] = f"{found:.0e}"


def silence(m: ElasticModule, dropped: set[int]) -> None:
    for name, tensor in m.tensors():
        if name in m.layout.output:
            with torch.no_grad():
                m.view(name, tensor)[:, list(dropped)] = 0
    for norm in channel_norms(m):
        kept = torch.tensor([j not in dropped for j in range(m.components)]).repeat_interleave(m.sizes["u"])
        norm.register_forward_hook(lambda norm, inputs, _, kept=kept: over_kept(norm, inputs[0], kept))


def over_kept(norm: Any, x: Tensor, kept: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    weight, bias = norm.weight[kept], norm.bias[kept]
    if isinstance(norm, nn.GroupNorm):
        y[:, kept] = F.group_norm(x[:, kept], 1, weight, bias, norm.eps)
    else:
        y[..., kept] = F.layer_norm(x[..., kept], weight.shape, weight, bias, norm.eps)
    return y


@every_model
def test_modules_without_components(entry: Entry) -> None:
    """The oracle's output weights and biases are zero; one component of each module comes back without a jump."""
    model = build(entry)
    oracle = copy.deepcopy(model)
    elastic, whole = Elastic(model), Elastic(oracle)
    emptied = {name: () for name, m in elastic.modules.items() if m.can_be_empty}
    for name in emptied:
        m = whole.modules[name]
        owner = m.layout.output[0].removesuffix("weight")
        with torch.no_grad():
            for leaf in ("weight", "bias"):
                if (tensor := getattr(m.module.get_submodule(owner[:-1]), leaf)) is not None:
                    tensor.zero_()
    if not emptied:
        pytest.skip("no module of this model may lose all its components")
    edit(elastic, **emptied)
    expected = run(entry, oracle)
    assert error(run(entry, model), expected) < 1e-4
    edit(elastic, **dict.fromkeys(emptied, (-1,)))
    assert error(run(entry, model), expected) < 1e-4


@every_model
def test_training_goes_on(entry: Entry, table: dict) -> None:
    model = build(entry).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    controller = GrowAndDrop(model, optimizer, Schedule(start=8, fraction=0.3), total_steps=24)
    inputs = entry.inputs(SMALL)
    target = torch.randn(entry.output(model(*inputs)).shape, generator=torch.Generator().manual_seed(1))
    losses, event = [], None
    for step in range(1, 25):
        loss = F.mse_loss(entry.output(model(*inputs)), target)
        loss.backward()
        controller.observe()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if controller.due(step):
            event = controller.adapt()
    assert event is not None
    assert event.dropped > 0
    assert event.grown > 0
    assert losses[7] < losses[0]
    assert losses[-1] < min(losses[8], losses[7])
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values() if parameter in optimizer.state else ():
            assert value.shape in (parameter.shape, ())
    table.setdefault(entry.name, {})["loss: start, event, end"] = ", ".join(f"{losses[i]:.2f}" for i in (0, 7, -1))


@every_model
def test_accelerated(entry: Entry, table: dict) -> None:
    """Accelerated before or after an edit, a model computes what it did."""
    early = build(entry)
    dmao_kernels.accelerate(early)
    model = build(entry)
    fast = copy.deepcopy(model)
    report = dmao_kernels.accelerate(fast)
    same(entry, fast, model)
    for m in (early, model):
        elastic = Elastic(m)
        edit(elastic, **{name: (0, *range(2, n)) for name, n in elastic.counts().items()})
    fast = copy.deepcopy(model)
    dmao_kernels.accelerate(fast)
    same(entry, early, model)
    same(entry, fast, model)
    table.setdefault(entry.name, {})["accelerated modules"] = str(len(report.changed))


def same(entry: Entry, ours: nn.Module, theirs: nn.Module) -> None:
    """Output, and gradients in training."""
    assert error(run(entry, ours), run(entry, theirs)) < 1e-4
    found, expected = (gradients(entry, copy.deepcopy(model).train()) for model in (ours, theirs))
    largest = max(g.abs().max() for g in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-3 * b.abs().max() + 1e-5 * largest


def gradients(entry: Entry, model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    y = entry.output(model(*entry.inputs(SMALL)))
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@every_model
def test_step_times(entry: Entry, table: dict) -> None:
    """A training step without optimizer, at a size that tells, of models that give the same."""
    model = build(entry, REAL)
    fast = copy.deepcopy(model)
    dmao_kernels.accelerate(fast)
    inputs = entry.inputs(REAL)
    with torch.no_grad():
        assert error(entry.output(fast(*inputs)), entry.output(model(*inputs))) < 1e-4
    model.train()
    fast.train()
    times: list[list[float]] = [[], []]
    for _ in range(9):
        for each, found in zip((model, fast), times, strict=True):
            start = time.perf_counter()
            entry.output(each(*inputs)).square().mean().backward()
            found.append(1000 * (time.perf_counter() - start))
    before, after = (statistics.median(found[2:]) for found in times)
    table.setdefault(entry.name, {}).update(
        {"step": f"{before:.0f}", "accelerated": f"{after:.0f}", "ratio": f"{after / before:.2f}"}
    )
