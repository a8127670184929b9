"""Pieces of a sharded parameter; what sharded parameters cannot do is refused, and the error names the remedy.

Training with them: tests/trainer/test_distributed.py.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from dmao.controller import GrowAndDrop
from dmao.schedule import Schedule
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import fully_shard

from dmao_kernels.nn import FeedForward
from dmao_kernels.structure import Elastic, Scores, ScoringAdamW, Storage, apply_plan, given_plan
from dmao_kernels.structure.shards import pieces
from tests.structure.plain import PlainFeedForward

NEEDS_SLOTS = r"0: \S+.* is sharded: .*elastic = Elastic\(model, storage='slots'\), then fully_shard, then GrowAndDrop"


@given(
    triple=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    cuts=st.tuples(st.integers(0, 120), st.integers(0, 120)),
)
def test_pieces_are_the_range(triple: tuple[int, int, int], cuts: tuple[int, int]) -> None:
    size = triple[0] * triple[1] * triple[2]
    start, stop = sorted(min(cut, size) for cut in cuts)
    of_component = torch.arange(triple[1]).repeat_interleave(triple[2]).repeat(triple[0])
    found, position = [], 0
    for piece in pieces(triple, start, stop):
        assert piece.start == position
        position += piece.entries
        inside = torch.arange(piece.first, piece.first + piece.components)
        found.append(inside.repeat_interleave(piece.run).repeat(piece.repeats))
    assert position == stop - start
    assert len(found) <= 7
    if found:
        torch.testing.assert_close(torch.cat(found), of_component[start:stop])


@pytest.mark.parametrize("triple", [(1, 4, 6), (2, 4, 3), (5, 4, 1)])
def test_the_whole_is_one_piece(triple: tuple[int, int, int]) -> None:
    (piece,) = pieces(triple, 0, 24 if triple[0] < 5 else 20)
    assert (piece.repeats, piece.components, piece.run, piece.first) == (*triple, 0)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(module: nn.Module, storage: Storage = "tight") -> Elastic:
    elastic = Elastic(nn.Sequential(module), storage=storage)
    fully_shard(elastic.model)
    return elastic


def controller(elastic: Elastic | nn.Module, storage: Storage = "tight") -> GrowAndDrop:
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters())
    return GrowAndDrop(elastic, optimizer, Schedule(start=1, events=1), total_steps=4, storage=storage)


TIGHT: dict[str, Callable[[Elastic], object]] = {
    "a controller of the model": lambda elastic: controller(elastic.model),
    "of the model, in slots": lambda elastic: controller(elastic.model, "slots"),
    "of the elastic": controller,
    "of the elastic, in slots": lambda elastic: controller(elastic, "slots"),
    "scores": Scores,
    "an edit": lambda elastic: apply_plan(given_plan({"0": (0, 1)}, elastic.counts()), elastic),
    "to slots": lambda elastic: elastic.to_slots(),
}


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("what", TIGHT)
@pytest.mark.parametrize("gathered", [False, True])
def test_tight_storage_is_refused(what: str, gathered: bool) -> None:
    elastic = sharded(FeedForward(8, 12))
    if gathered:  # then the model holds plain tensors, which are copies
        with torch.no_grad():
            elastic.model(torch.randn(1, 5, 8))
    with pytest.raises(ValueError, match=NEEDS_SLOTS):
        TIGHT[what](elastic)


@pytest.mark.usefixtures("one_rank")
def test_what_slots_storage_refuses() -> None:
    elastic = sharded(FeedForward(8, 12), "slots")
    with pytest.raises(ValueError, match="is sharded"):
        elastic.to_tight()
    optimizer = ScoringAdamW(elastic.model.parameters(), scores=Scores(elastic))
    with pytest.raises(RuntimeError, match=r"parameters are sharded: use torch\.optim\.AdamW, and score by observe"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"0: w1\.weight is sharded, .* PlainFeedForward cannot"):
        Scores(sharded(PlainFeedForward(), "slots"))
    inner = Elastic(nn.Sequential(FeedForward(8, 12)), storage="slots")
    fully_shard(inner.model[0].w2)
    fully_shard(inner.model)
    with pytest.raises(ValueError, match=r"fully_shard was called on what holds w2\.weight: call it on whole modules"):
        Scores(inner)
    part = Elastic(nn.Sequential(FeedForward(8, 12), FeedForward(8, 12)), storage="slots")
    fully_shard(part.model[0])
    with pytest.raises(ValueError, match="some of the scored parameters are sharded and some are not"):
        Scores(part)
