"""Called by several_ranks.py: a model in slots storage whose parameters are sharded, and beside it one that is not.

Both train on the same global batches, with three events, and are compared. A checkpoint is written in the middle; where
there is one already, the sharded model goes on from it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dmao.controller import GrowAndDrop
from dmao.schedule import Schedule
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from dmao_kernels.nn import ConformerBlock
from dmao_kernels.structure import Elastic
from dmao_kernels.structure.slots import edit

STEPS, MIDDLE, UTTERANCES, WIDTH = 16, 8, 4, 24


class Training:
    """A small encoder that learns to repeat its input; this rank's share of every batch."""

    def __init__(self, rank: int, ranks: int, sharded: bool) -> None:
        torch.manual_seed(0)
        arguments = {"head_dim": 8, "expansion": 2, "kernel": 5, "dropout": 0.0, "components": 3}
        self.model = nn.Sequential(*(ConformerBlock(WIDTH, 3, **arguments) for _ in range(2)), nn.Linear(WIDTH, WIDTH))
        elastic = Elastic(self.model, storage="slots")
        if sharded:
            fully_shard(self.model[0])
            fully_shard(self.model)  # and so the other block
        self.share = slice(rank * UTTERANCES // ranks, (rank + 1) * UTTERANCES // ranks) if sharded else slice(None)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, foreach=False)
        schedule = Schedule(start=5, end=13, events=3, fraction=0.5)
        self.controller = GrowAndDrop(elastic, self.optimizer, schedule, STEPS, split="halves", beta=0.7)

    def step(self, number: int) -> float:
        x = torch.randn(UTTERANCES, 12, WIDTH, generator=torch.Generator().manual_seed(number))[self.share]
        loss = (self.model(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        self.controller.observe()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.controller.due(number):
            with torch.no_grad():
                self.model(x)  # leaves the root's parameters gathered
            self.controller.adapt()
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder / "state")
        state = self.controller.state_dict()
        if dist.get_rank() == 0:
            torch.save(state, folder / "controller.pt")

    def resume(self, folder: Path) -> None:
        self.controller.load_state_dict(torch.load(folder / "controller.pt", weights_only=True))
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder / "state")
        set_state_dict(self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)


def compare_sharded(folder: Path, die: bool = False) -> None:
    """Raises AssertionError where the two differ; prints how many steps were compared.

    die: rank 1 kills itself in the first event after the checkpoint, when half of the weights are written.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    ours, plain = Training(rank, ranks, sharded=True), Training(rank, ranks, sharded=False)
    resuming = (folder / "controller.pt").exists()
    for number in range(1, STEPS + 1):
        theirs = plain.step(number)
        if number > MIDDLE or not resuming:
            loss = torch.tensor(ours.step(number))
            dist.all_reduce(loss)
            torch.testing.assert_close(float(loss) / ranks, theirs, rtol=1e-4, atol=1e-6)
        if number == MIDDLE:
            ours.resume(folder) if resuming else ours.save(folder)
            compare(ours, plain)
            if die and rank == 1:
                die_in_the_event()
    compare(ours, plain)
    assert len(ours.controller.events) == 3
    counts = plain.controller.elastic.counts()
    assert len(set(counts.values())) > 1, counts
    if rank == 0:
        print(f"{ranks} ranks, {STEPS - MIDDLE * resuming} steps: equal; {counts}")


def die() -> None:
    print(f"rank {dist.get_rank()} dies in an event", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_event() -> None:
    write, written = edit.write, []

    def write_or_die(target: Tensor, value: Tensor) -> Any:
        written.append(target)
        if len(written) == 100:
            die()
        write(target, value)

    edit.write = write_or_die  # type: ignore[assignment]


def compare(ours: Training, plain: Training) -> None:
    """Scores, plans and weights; health."""
    for (name, found), expected in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        if not name.endswith("attention.k.bias"):  # its gradient is zero but for rounding, of which Adam makes steps
            torch.testing.assert_close(whole(found), expected, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    scores = [each.controller.scores.values() for each in (ours, plain)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-8)
    digests = [[event.digest for event in each.controller.events] for each in (ours, plain)]
    assert digests[0] == digests[1], digests
    torch.testing.assert_close(ours.controller.health(), plain.controller.health(), rtol=1e-3, atol=1e-4)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
