"""Run by test_sharded.py under torchrun: a model in slots storage whose parameters are sharded, and one that is not.

    torchrun ... sharded_ranks.py FOLDER [STEPS]

Trains both on the same global batches, with three events, and compares; writes a checkpoint to FOLDER in the middle,
or goes on from the one that it finds there.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

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

STEPS, MIDDLE, UTTERANCES, WIDTH = 16, 8, 4, 24


class Training:
    """A small encoder that learns to repeat its input; this rank's share of every batch."""

    def __init__(self, rank: int, ranks: int, sharded: bool) -> None:
        torch.manual_seed(0)
        arguments = {"head_dim": 8, "expansion": 2, "kernel": 5, "dropout": 0.0, "components": 3}
        self.model = nn.Sequential(*(ConformerBlock(WIDTH, 3, **arguments) for _ in range(2)), nn.Linear(WIDTH, WIDTH))
        elastic = Elastic(self.model, storage="slots")
        if sharded:
            for block in self.model:
                fully_shard(block)
            fully_shard(self.model)
        self.share = slice(rank * UTTERANCES // ranks, (rank + 1) * UTTERANCES // ranks) if sharded else slice(None)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, foreach=False)
        schedule = Schedule(start=5, end=13, events=3, fraction=0.5)
        self.controller = GrowAndDrop(elastic, self.optimizer, schedule, STEPS, split="halves", scope="component")

    def step(self, number: int) -> float:
        x = torch.randn(UTTERANCES, 12, WIDTH, generator=torch.Generator().manual_seed(number))[self.share]
        loss = (self.model(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        self.controller.observe()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.controller.due(number):
            self.controller.adapt()
        return float(loss)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    ours, plain = Training(rank, ranks, sharded=True), Training(rank, ranks, sharded=False)
    first = 1
    for number in range(1, STEPS + 1):
        theirs = plain.step(number)
        if number <= MIDDLE and (folder / "controller.pt").exists():
            if number == MIDDLE:
                resume(ours, folder)
            continue
        loss = torch.tensor(ours.step(number))
        dist.all_reduce(loss)
        torch.testing.assert_close(float(loss) / ranks, theirs, rtol=1e-4, atol=1e-6)
        if number == MIDDLE:
            save(ours, folder, rank)
        first += 1
    for (name, found), expected in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(whole(found), expected, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    digests = [[event.digest for event in each.controller.events] for each in (ours, plain)]
    assert digests[0] == digests[1], digests
    assert len(digests[0]) == 3
    counts = plain.controller.elastic.counts()
    assert len(set(counts.values())) > 1, counts
    if rank == 0:
        print(f"{ranks} ranks, {first - 1} steps: equal; {counts}")
    dist.destroy_process_group()


def save(training: Training, folder: Path, rank: int) -> None:
    model, optimizer = get_state_dict(training.model, training.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder / "state")
    state = training.controller.state_dict()
    if rank == 0:
        torch.save(state, folder / "controller.pt")


def resume(training: Training, folder: Path) -> None:
    training.controller.load_state_dict(torch.load(folder / "controller.pt", weights_only=True))
    model, optimizer = get_state_dict(training.model, training.optimizer)
    state = {"model": copy.copy(model), "optimizer": copy.copy(optimizer)}
    dcp.load(state, checkpoint_id=folder / "state")
    set_state_dict(
        training.model, training.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


if __name__ == "__main__":
    main()
