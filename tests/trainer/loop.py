"""A user's own model, and ten lines of a loop around it and its controller."""

from __future__ import annotations

import torch
from dmao.controller import GrowAndDrop
from dmao.schedule import Schedule
from torch import nn

from dmao_kernels.structure import ScoringAdamW, feedforward_layout, register_family


class Mlp(nn.Module):
    def __init__(self, d: int = 6, hidden: int = 16):
        super().__init__()
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self, hidden=(16, 16, 16, 16, 16)):
        super().__init__()
        self.blocks = nn.ModuleList(Mlp(hidden=width) for width in hidden)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


register_family(Mlp, feedforward_layout(up="up", down="down", norm=None))


def build(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(step: int):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    return x, x.roll(1, dims=1) * torch.tensor([2.0, 1, 1, 1, 0, 0])


def run(model, optimizer, controller, steps):
    """The ten lines of a user's loop; returns losses and events."""
    losses, events = [], []
    for step in steps:
        x, y = batch(step)
        loss = (model(x) - y).square().mean()
        loss.backward()
        if not isinstance(optimizer, ScoringAdamW):
            controller.observe()
        optimizer.step()
        optimizer.zero_grad()
        if controller.due(step):
            events.append(controller.adapt())
        losses.append(loss.item())
    return losses, events


def setup(schedule=None, seed=0, optimizer_class=torch.optim.AdamW, **settings):
    model = build()
    optimizer = optimizer_class(model.parameters(), lr=1e-2)
    schedule = schedule or Schedule(start=0.3, end=0.6, events=2, fraction=0.4)
    return model, optimizer, GrowAndDrop(model, optimizer, schedule, total_steps=40, seed=seed, **settings)


def observe(controller, learn=True):
    x, y = batch(0)
    (controller.elastic.model(x) - y).square().mean().backward()
    if not learn:
        controller.elastic.model.zero_grad()
    controller.observe()


def without_time(events):
    return [{key: value for key, value in e.to_dict().items() if key != "seconds"} for e in events]
