"""An edit in slots storage: everything is rewritten in place, by an index that lies on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from dmao_kernels.structure.gather import Split, draw, scale, share
from dmao_kernels.structure.plan import FRESH, Plan
from dmao_kernels.structure.shards import own, reshard, whole, write
from dmao_kernels.structure.targets import (
    WEIGHT_COPIES,
    Companions,
    expect,
    follows,
    output_biases,
    state_beside,
    states_of,
    weight_copies,
)

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic, ElasticModule

DEAD = -2  # a slot without a component; FRESH (-1) is one that begins anew

Fresh = Mapping[str, Mapping[str, Tensor]]  # module -> tensor -> [repeats, components, run]


def slot_sources(plan: Plan, elastic: Elastic) -> dict[str, Tensor]:
    """Of every module int64 [capacity], on its device: the old slot of every new one, FRESH or DEAD.

    Raises ValueError where a module has not enough slots.
    """
    sources = {}
    for module in plan.modules:
        m = elastic.modules[module.name]
        if len(module.sources) > m.stored:
            raise ValueError(
                f"apply_plan: {m.title} has {m.stored} slots, too few for {len(module.sources)} components"
            )
        padded = (*module.sources, *(DEAD,) * (m.stored - len(module.sources)))
        sources[m.name] = torch.tensor(padded, dtype=torch.int64, device="cpu").to(m.device, non_blocking=True)
    return sources


@torch.no_grad()
def edit_slots(
    elastic: Elastic,
    sources: Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
    companions: Companions,
    split: Split,
    generator: Generator,
    fresh: Fresh,
) -> None:
    """Rewrite the modules named in ``sources``: nothing waits for the device, and no shape changes.

    Everything is checked and computed before anything is written. The random numbers do not depend on what the plan
    does: so many are drawn as copies could be. Sharded tensors are gathered one by one, by all ranks at once.
    """
    writes: list[tuple[Tensor, Tensor]] = []
    reshard(elastic.model)
    for name, source in sources.items():
        m, values = elastic.modules[name], fresh.get(name)
        edited = _edit_module(m, Moves(source), optimizers, companions, split, generator, values)
        writes += [(target, own(target, value)) for target, value in edited]
    for target, value in writes:
        write(target, value)
    torch.clear_autocast_cache()  # an autocast region around the loop keeps casts of the old weights
    elastic.edits += 1
    elastic.version += 1


class Moves:
    """What becomes of the slots of one module, as tensors over the new ones.

    source: the old slot (0 where there is none).  live: whether a component lives there.  taken: whether it comes
    from an old slot.  fresh: whether it begins anew, and which of these it is.  first, second: whether it is the
    source, or the copy, of a component that stands twice, and which of these it is (pair).
    """

    def __init__(self, source: Tensor) -> None:
        capacity = source.shape[0]
        slots = torch.arange(capacity, device=source.device)
        self.live, self.taken, self.fresh = source > DEAD, source >= 0, source == FRESH
        self.source = source.clamp(min=0)
        self.fresh_place = (self.fresh.cumsum(0) - 1).clamp(min=0)
        bucket = torch.where(self.taken, source, capacity)  # the last one is for slots without a source
        times = slots.new_zeros(capacity + 1).scatter_add(0, bucket, torch.ones_like(bucket))
        earliest = slots.new_full((capacity + 1,), capacity).scatter_reduce(0, bucket, slots, "amin")
        twice = self.taken & (times[bucket] == 2)
        self.first, self.second = twice & (earliest[bucket] == slots), twice & (earliest[bucket] != slots)
        place = slots.new_zeros(capacity + 1)
        place.scatter_(0, torch.where(self.second, source, capacity), self.second.cumsum(0) - 1)
        self.pair = torch.where(twice, place[bucket], 0)

    def follow(self, view: Tensor) -> Tensor:
        """``view`` [repeats, capacity, run], every component with its source's entries, the others zero."""
        return torch.where(self.taken[None, :, None], view.index_select(1, self.source), 0)


def _edit_module(
    m: ElasticModule,
    moves: Moves,
    optimizers: Sequence[Optimizer],
    companions: Companions,
    split: Split,
    generator: Generator,
    fresh: Mapping[str, Tensor] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """New values of all tensors of a module, beside what they replace."""
    for name, _ in m.tensors():
        yield from _edit_tensor(m, name, moves, optimizers, companions, split, generator, fresh or {})
    if fresh is not None:
        yield from _silence_output_biases(m, optimizers, companions)
    yield from ((live, moves.live) for live in _live_lists(m, companions))


def _edit_tensor(
    m: ElasticModule,
    name: str,
    moves: Moves,
    optimizers: Sequence[Optimizer],
    companions: Companions,
    split: Split,
    generator: Generator,
    fresh: Mapping[str, Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """New values of one tensor of the layout and of whatever has its shape, beside what they replace."""
    random = None
    tensor = cast(Tensor, m.place(name).tensor)
    if name in m.layout.output:
        view = m.view(name, whole(tensor))
        random = draw((view.shape[0], max(m.stored // 2, 1), view.shape[2]), view, split, generator)
        if random is not None:
            random = scale(random.index_select(1, moves.pair), view.index_select(1, moves.source), split)
    for weights in (tensor, *companions.tensors(m, name), *weight_copies(optimizers, tensor)):
        expect(m, name, weights, "it", in_place=True)
        view = m.view(name, whole(weights))
        new = moves.follow(view)
        if name in m.layout.output:
            new = _shared(moves, view.index_select(1, moves.source), new, split, random)
        elif name in m.layout.even:
            new = torch.where((moves.first | moves.second)[None, :, None], new / 2, new)
        if (values := fresh.get(name)) is not None:
            new = torch.where(moves.fresh[None, :, None], values.to(new).index_select(1, moves.fresh_place), new)
        yield weights, new
        for what, follower in _followers(m, name, weights, optimizers):
            expect(m, name, follower, what, in_place=True)
            yield follower, moves.follow(m.view(name, whole(follower)))


def _shared(moves: Moves, whole: Tensor, new: Tensor, split: Split, random: Tensor | None) -> Tensor:
    """Source and copy share what leaves through an output tensor."""
    part = share(whole, split, random)
    wide = torch.promote_types(whole.dtype, torch.float32)
    rest = (whole.to(wide) - part.to(wide)).to(whole.dtype)
    return torch.where(moves.first[None, :, None], part, torch.where(moves.second[None, :, None], rest, new))


def _followers(
    m: ElasticModule, name: str, parameter: Tensor, optimizers: Sequence[Optimizer]
) -> Iterator[tuple[str, Tensor]]:
    """Gradient and optimizer state of a parameter."""
    if not isinstance(parameter, nn.Parameter):
        return
    if parameter.grad is not None:
        yield "its gradient", parameter.grad
    for state in states_of(optimizers, parameter):
        for key, value in state.items():
            if key not in WEIGHT_COPIES and follows(m, name, parameter, key, value):
                yield f"optimizer state '{key}'", value


def _silence_output_biases(
    m: ElasticModule, optimizers: Sequence[Optimizer], companions: Companions
) -> Iterator[tuple[Tensor, Tensor]]:
    """Zero biases behind the outputs of a module that was empty: it contributed nothing, nor may they at once."""
    was_empty = ~cast(Tensor, m.slots).any()
    for name in output_biases(m):
        places = [m.place(name, module) for module in (m.module, *companions.modules(m))]
        tensors = [place.tensor for place in places if place.tensor is not None]
        tensors += [table[key] for table, key in companions.entries(m, name, required=False)]
        for tensor in tuple(tensors):
            tensors += [state[key] for state, key in state_beside(optimizers, tensor)]
        yield from ((tensor, torch.where(was_empty, 0, whole(tensor))) for tensor in tensors)


def _live_lists(m: ElasticModule, companions: Companions) -> Iterator[Tensor]:
    """The live list of the module and of its counterparts."""
    for module in (m.module, *companions.modules(m)):
        yield cast(Tensor, module.live_slots)
    yield from (table[key] for table, key in companions.entries(m, "live_slots", required=False))
