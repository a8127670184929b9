"""Parameters of which every rank holds some rows (fully_shard): where a rank's part lies among the components."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

REMEDY = (
    "is sharded: go over to slots storage before fully_shard: elastic = Elastic(model, storage='slots'), then "
    "fully_shard, then GrowAndDrop(elastic, ...)"
)


@dataclass(frozen=True)
class Piece:
    """A contiguous run of a rank's part that is, by itself, repeats x components x run.

    start: its first entry in the rank's part.  first: the component that it begins with. Where a cut goes through
    a component, ``run`` is what lies on this side.
    """

    start: int
    repeats: int
    components: int
    run: int
    first: int

    @property
    def entries(self) -> int:
        """How many entries it has."""
        return self.repeats * self.components * self.run

    def of(self, flat: Tensor) -> Tensor:
        """The piece of a rank's part."""
        return flat[self.start : self.start + self.entries]


def pieces(triple: tuple[int, int, int], start: int, stop: int) -> list[Piece]:
    """The entries [start, stop) of a contiguous tensor that is repeats x components x run, cut where it must be."""
    _, components, run = triple
    found: list[Piece] = []

    def add(end: int, repeats: int, count: int, width: int) -> int:
        """One piece from ``position`` to ``end``."""
        if end > position:
            found.append(Piece(position - start, repeats, count, width, position // run % components))
        return end

    position, period = start, components * run
    while position < stop:
        if position % period == 0 and stop - position >= period:  # whole repeats
            repeats = (stop - position) // period
            position = add(position + repeats * period, repeats, components, run)
            continue
        end = min(stop, (position // period + 1) * period)
        if position % run == 0 and end - position >= run:  # whole components of one repeat
            count = (end - position) // run
            position = add(position + count * run, 1, count, run)
        else:  # a part of one component
            end = min(end, (position // run + 1) * run)
            position = add(end, 1, 1, end - position)
    return found


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, without an import that nobody else has asked for."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def reshard(model: nn.Module) -> None:
    """Puts the parameters back in their places: fully_shard leaves the gathered ones there, which are copies, after a
    forward pass that no backward pass follows.
    """
    for module in model.modules():
        if called_on(module):
            sharding: Any = module
            sharding.reshard()


def called_on(module: nn.Module) -> bool:
    """Whether fully_shard was called on this very module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def part(tensor: Tensor) -> tuple[Tensor, int, int]:
    """The entries of a sharded tensor that this rank holds, flat, and their range in the whole.

    Raises ValueError for a tensor that is sharded otherwise than by rows over one axis of ranks.
    """
    sharded: Any = tensor
    if len(sharded.placements) != 1 or not sharded.placements[0].is_shard(0):
        raise ValueError(f"a sharded parameter must be Shard(0) over a mesh of one axis, got {sharded.placements}")
    rows, mesh = tensor.shape[0], sharded.device_mesh
    chunk = -(-rows // mesh.size())  # as torch.chunk, and so fully_shard, cuts
    first = min(mesh.get_local_rank() * chunk, rows)
    local = sharded.to_local().reshape(-1)
    start = first * (tensor.numel() // rows) if rows else 0
    return local, start, start + local.numel()


def whole(tensor: Tensor) -> Tensor:
    """All entries of it; from a sharded one gathered, which every rank has to ask for."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def holders(tensor: Tensor) -> int:
    """How many ranks share a sharded tensor."""
    sharded: Any = tensor
    return int(sharded.device_mesh.size())


def summed(values: Tensor, tensor: Tensor) -> Tensor:
    """The sum of ``values`` over the ranks that share a sharded tensor, the same to the bit on all of them."""
    sharded: Any = tensor
    total = values.double()
    dist.all_reduce(total, group=sharded.device_mesh.get_group())
    return total.to(values.dtype)


def own(tensor: Tensor, value: Tensor) -> Tensor:
    """What this rank holds of ``value``, which is to replace ``tensor``: all of it, or a copy of its part."""
    if not is_sharded(tensor):
        return value
    _, start, stop = part(tensor)
    return value.reshape(-1)[start:stop].clone()


def write(tensor: Tensor, value: Tensor) -> None:
    """Overwrites what this rank holds of ``tensor``."""
    sharded: Any = tensor
    local: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    local.copy_(value.view_as(local))
