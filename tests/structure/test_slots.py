"""Slots storage: the same training as tight storage, nothing compiled anew, nothing but zeros in dead slots."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmao_kernels.nn import ConformerBlock, EBranchformerBlock, RelPosSelfAttention
from dmao_kernels.structure import Elastic, Scores, apply_plan, given_plan
from tests.structure.plain import D, build


class Encoder(nn.Module):
    """Every layer of the library, with padding; no dropout."""

    def __init__(self):
        super().__init__()
        arguments = {"head_dim": 8, "expansion": 2, "kernel": 5, "dropout": 0.0, "components": 3}
        self.blocks = nn.ModuleList(
            [
                ConformerBlock(24, 3, positions="relative", **arguments),
                EBranchformerBlock(24, 3, cgmlp_expansion=2, merge_kernel=3, **arguments),
            ]
        )
        self.shaw = RelPosSelfAttention(24, 3, 8, 0.0, radius=3)

    def forward(self, x):
        mask = torch.arange(x.shape[1]) < torch.tensor([[x.shape[1]], [x.shape[1] - 3]])
        for block in self.blocks:
            x = block(x, mask)
        return (x + self.shaw(x, mask))[mask]


def perturbed(model, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def encoder():
    torch.manual_seed(0)
    return perturbed(Encoder())


def without_dropout():
    """Ordinary modules of all families; their BatchNorm is part of it."""
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


# Momentum goes on in an empty module's norm and bias, whose gradients are zeros in slots and None in tight storage.
RUNS = {
    "ours": (encoder, 24, torch.float32, lambda p: torch.optim.SGD(p, lr=0.05), True),
    "ours, momentum": (encoder, 24, torch.float32, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), False),
    "ordinary": (without_dropout, D, torch.float64, lambda p: torch.optim.SGD(p, lr=0.05), True),
    "ordinary, adamw": (without_dropout, D, torch.float64, lambda p: torch.optim.AdamW(p, lr=1e-2), False),
}


def sample(width, seed):
    return torch.randn(2, 11, width, generator=torch.Generator().manual_seed(seed))


def step(model, optimizer, x):
    optimizer.zero_grad()
    y = model(x)
    loss = F.mse_loss(y, torch.full_like(y, 0.3).cumsum(0) % 1)
    loss.backward()
    return loss.item()


def same_noise(monkeypatch):
    """Noise that depends on the entry and on the number of the pair, but not on how many could be drawn."""

    def draw(shape, like, split, generator):
        grid = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
        return (12.9 * grid[0] + 78.2 * grid[1] + 37.7 * grid[2]).sin()

    monkeypatch.setattr("dmao_kernels.structure.edit.draw", draw)
    monkeypatch.setattr("dmao_kernels.structure.slots.edit.draw", draw)


def events(elastic, empty):
    """Three edits: some of everything, some modules emptied, and these revived."""
    yield {n: (*range(1, c), c - 1) if i % 2 else (0, *range(c)) for i, (n, c) in enumerate(elastic.counts().items())}
    victims = [n for n, m in elastic.modules.items() if empty and (m.layout.even == () or hasattr(m.module, "empty"))]
    yield {n: () if n in victims[::2] else (0, *range(2, c)) for n, c in elastic.counts().items()}
    yield {n: (*range(c), c - 1) if c else (-1,) for n, c in elastic.counts().items()}


def run(storage, make, width, dtype, optimize, empty):
    """Sixteen steps with three events; the average and the scores follow."""
    model = make().to(dtype)
    optimizer = optimize(model.parameters())
    average = copy.deepcopy(model)
    elastic = Elastic(model)
    if storage == "slots":
        elastic.to_slots(2.0, optimizer, [average])
    scores, losses, plans = Scores(elastic, beta=0.5), [], events(elastic, empty)
    for i in range(16):
        losses.append(step(model, optimizer, sample(width, i).to(dtype)))
        if dtype == torch.float32:  # what scores are made of
            scores.update()
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 0.1)
        if i in (3, 7, 11):
            plan = given_plan(next(plans), elastic.counts(), seed=i)
            apply_plan(plan, elastic, optimizer, [average])
            scores.follow(plan)
    return model, optimizer, average, elastic, scores, losses


@pytest.mark.parametrize("name", RUNS)
def test_trains_as_tight_storage_does(name, monkeypatch):
    same_noise(monkeypatch)
    model, _, average, elastic, scores, losses = run("tight", *RUNS[name])
    other, optimizer, copied, slots, rescored, relosses = run("slots", *RUNS[name])
    assert_dead_slots_hold_zeros(slots, optimizer)
    slots.to_tight(optimizer, [copied])
    rescored.refit()
    assert elastic.counts() == slots.counts()
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if RUNS[name][2] == torch.float64 else {"rtol": 2e-3, "atol": 2e-5}
    torch.testing.assert_close(torch.tensor(relosses), torch.tensor(losses), **tolerance)
    for a, b in ((other, model), (copied, average)):
        expected = b.state_dict()
        assert a.state_dict().keys() == expected.keys()
        for key, tensor in a.state_dict().items():
            torch.testing.assert_close(tensor, expected[key], **tolerance, msg=lambda text, key=key: f"{key}: {text}")
    torch.testing.assert_close(rescored.ema, scores.ema, rtol=1e-2, atol=1e-6)
    x = sample(RUNS[name][1], 99).to(RUNS[name][2])
    torch.testing.assert_close(copied.eval()(x), average.eval()(x), **tolerance)


def assert_dead_slots_hold_zeros(elastic, optimizer):
    """In parameters, buffers, gradients and moments; and there are some."""
    dead = 0
    for m in elastic.modules.values():
        for name, tensor in m.tensors():
            state = [v for v in optimizer.state.get(tensor, {}).values() if v.shape == tensor.shape]
            for t in (tensor, *([] if tensor.grad is None else [tensor.grad]), *state):
                assert not m.view(name, t)[:, ~m.slots].any(), (m.name, name)
                dead += m.view(name, t)[:, ~m.slots].numel()
    assert dead


@pytest.mark.parametrize("heads", [(), (1,), (0, 0, 1)])
def test_attention_that_returns_a_pair(heads):
    torch.manual_seed(0)
    tight = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2)
    slots, x = copy.deepcopy(tight), torch.randn(2, 5, 16)
    outputs = []
    for model, storage in ((tight, "tight"), (slots, "slots")):
        elastic = Elastic(model, storage=storage)
        apply_plan(given_plan({"layers.0.self_attn": heads}, elastic.counts()), elastic, split="halves")
        outputs.append(model(x))
    torch.testing.assert_close(*outputs)
