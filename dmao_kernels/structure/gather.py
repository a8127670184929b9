"""What an edit does to one tensor, seen as [repeats, components, run], in the terms of `gather_components`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from dmao_kernels.ops.gather_components import gather_components
from dmao_kernels.structure.plan import FRESH, ModulePlan

Split = Literal["asymmetric", "halves", "uniform"]
SPLITS = ("asymmetric", "halves", "uniform")
_ABSENT = -1


class Gathering:
    """Tensors that an edit makes: asked for one by one, made all at once."""

    def __init__(self) -> None:
        self._views: list[Tensor] = []
        self._index: list[Tensor] = []
        self._given: list[Tensor | None] = []
        self._made: list[Tensor] = []

    def add(self, view: Tensor, index: Tensor, given: Tensor | None, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        """Asks for one of that shape; the result returns it once `make` was called."""
        place = len(self._views)
        self._views.append(view)
        self._index.append(index)
        self._given.append(given)
        return lambda: self._made[place].reshape(shape)

    def make(self) -> None:
        """One pass over all of them."""
        self._made = gather_components(self._views, self._index, self._given)


def moved(module: ModulePlan) -> Tensor:
    """The index by which gradients and moments follow: every component has its source's, fresh ones have zero."""
    rows = [(_ABSENT if s == FRESH else s, _ABSENT) for s in module.sources]
    return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, 2)


def weights_index(module: ModulePlan, shared: Literal["", "output", "even"], fresh: bool) -> Tensor:
    """The index of a weight tensor, whose given components are the shares of the copied ones, then the fresh ones.

    shared: "output": the source takes its share and the copy the rest; "even": both take the share; "": both have
        the whole.
    fresh: whether values of fresh components are given; else they are zero.
    """
    rows = moved(module)
    first, second = rows.new_tensor(module.copies).reshape(-1, 2).unbind(1)
    shares = torch.arange(len(first), device="cpu")
    if shared:
        rows[first] = torch.stack([torch.full_like(shares, _ABSENT), shares], 1)
        rows[second] = rows[first] if shared == "even" else torch.stack([rows[second, 0], shares], 1)
    if fresh:
        rows[list(module.fresh), 1] = torch.arange(len(module.fresh), device="cpu") + (len(first) if shared else 0)
    return rows


def draw(shape: Sequence[int], like: Tensor, split: Split, generator: Generator) -> Tensor | None:
    """The random numbers of a split, one per entry of every copied component [repeats, copies, run]."""
    if split == "halves":
        return None
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    sample = torch.rand if split == "uniform" else torch.randn
    return sample(*shape, generator=generator, dtype=kind, device=generator.device).to(like.device)


def scale(random: Tensor | None, whole: Tensor, split: Split) -> Tensor | None:
    """The random part of a split, drawn for the components ``whole`` [repeats, copies, run].

    Made once from the model's own weights and used for its companions as well, so that an average of the
    weights keeps following them.
    """
    if random is None or split == "uniform":
        return random
    spread = whole.to(random.dtype).permute(1, 0, 2).flatten(1).std(dim=1, correction=0)
    return random * spread[None, :, None]


def share(whole: Tensor, split: Split, random: Tensor | None) -> Tensor:
    """What the source keeps, a, of the output weights w that it shares with its copy, which takes w - a.

    asymmetric: a = w/2 + e, e ~ N(0, std of the component's w).  uniform: a = w r, r ~ U(0, 1) per entry.
    halves: a = w/2; the copies then have equal gradients and stay equal.
    """
    part = whole.to(torch.promote_types(whole.dtype, torch.float32))
    if random is None:
        return (part / 2).to(whole.dtype)
    random = random.to(part.device)  # an average may lie elsewhere
    part = part * random if split == "uniform" else part / 2 + random
    return part.to(whole.dtype)


def copied(view: Tensor, module: ModulePlan) -> Tensor:
    """The components that are to stand twice."""
    return view[:, [module.sources[source] for source, _ in module.copies]]
