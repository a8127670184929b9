"""A short training with an event, in both storages: it learns, and its structure and losses are those of the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor, nn

from dmao_kernels.nn import ConformerBlock, FeedForward
from dmao_kernels.structure import (
    Costs,
    Elastic,
    ParameterCost,
    Scores,
    ScoringAdamW,
    Storage,
    apply_plan,
    apply_slot_plan,
    make_plan,
    make_slot_plan,
)
from dmao_kernels.testing.selftest.problems import first_line

STEPS, EVENT = 12, 5


@dataclass(frozen=True)
class Run:
    """What a training did. problem: what is wrong, or ""."""

    storage: str
    losses: list[float] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    problem: str = ""


class NoWaiting(AbstractContextManager[None]):
    """Makes PyTorch refuse whatever lets the host wait for a GPU."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.cuda.set_sync_debug_mode("default")


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ConformerBlock(32, 4, head_dim=8, expansion=2, kernel=5, dropout=0.0, components=4)
        self.last = FeedForward(32, 64, dropout=0.0, components=4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.block(x, mask)
        return x + self.last(x)


def trainings(device: str) -> list[Run]:
    """One in each storage; on a GPU each beside the CPU."""
    return [_checked(device, storage) for storage in ("tight", "slots")]


def _checked(device: str, storage: Storage) -> Run:
    try:
        run = _train(device, storage)
        expected = _train("cpu", storage) if device != "cpu" else run
    except Exception as error:  # belongs into the report
        return Run(storage, problem=first_line(error))
    problem = ""
    if not run.losses[-1] < run.losses[0]:
        problem = "the loss does not fall"
    elif run.widths != expected.widths:
        problem = f"other widths than on the CPU: {expected.widths}"
    elif not torch.allclose(torch.tensor(run.losses), torch.tensor(expected.losses), rtol=1e-2):
        problem = f"other losses than on the CPU: {expected.losses}"
    return Run(storage, run.losses, run.widths, problem)


def _train(device: str, storage: Storage) -> Run:
    torch.manual_seed(0)
    model = _Model().to(device)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(3, 20, 32, generator=draw).to(device)
    mask = (torch.arange(20) < torch.tensor([[20], [13], [1]])).to(device)
    target = torch.randn(3, 20, 32, generator=draw).to(device)
    optimizer = ScoringAdamW(model.parameters(), lr=1e-3)
    elastic = Elastic(model)
    if storage == "slots":
        elastic.to_slots(2.0, optimizer)
    optimizer.scores = scores = Scores(elastic, beta=0.5)
    costs = ParameterCost().measure(elastic)
    losses = []
    for step in range(1, STEPS + 1):
        loss = (model(x, mask) - target)[mask].square().mean()
        loss.backward()
        losses.append(loss.item())
        with nullcontext() if device == "cpu" or storage == "tight" else NoWaiting():
            optimizer.step()
            optimizer.zero_grad()
            if step == EVENT:
                _adapt(elastic, scores, optimizer, costs)
    return Run(storage, losses, elastic.counts())


def _adapt(elastic: Elastic, scores: Scores, optimizer: ScoringAdamW, costs: Costs) -> None:
    if elastic.storage == "slots":
        slot_plan = make_slot_plan(elastic, scores.values(), 0.25, costs=costs)
        apply_slot_plan(slot_plan, elastic, optimizer, split="halves")  # random numbers differ from device to device
        scores.follow_slots(slot_plan.sources)
    else:
        plan = make_plan(elastic.groups(scores.values(), costs), 0.25, fixed=costs.fixed)
        apply_plan(plan, elastic, optimizer)
        scores.follow(plan)
