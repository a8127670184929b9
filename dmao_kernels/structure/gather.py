"""The arithmetic of an edit on one tensor, seen as [repeats, components, run]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from dmao_kernels.structure.plan import FRESH, ModulePlan

Split = Literal["asymmetric", "halves", "uniform"]
SPLITS = ("asymmetric", "halves", "uniform")


def gather(view: Tensor, module: ModulePlan, fresh: Tensor | float = 0.0) -> Tensor:
    """The components that the plan names, in its order; ``fresh`` fills those without a source."""
    sources = torch.tensor(module.sources, dtype=torch.long, device=view.device)
    if not module.fresh:
        return view.index_select(1, sources)
    repeats, _, run = view.shape
    gathered = view.new_empty(repeats, len(module.sources), run)
    old = (sources != FRESH).nonzero().flatten()
    gathered[:, old] = view.index_select(1, sources[old])
    gathered[:, list(module.fresh)] = fresh
    return gathered


def draw(view: Tensor, module: ModulePlan, split: Split, generator: Generator) -> Tensor | None:
    """The random part of a split, one entry per entry of every copied component of an output tensor.

    Drawn once from the model's own weights and used for its companions as well, so that an average of the
    weights keeps following them.
    """
    if split == "halves" or not module.copies:
        return None
    source = _copied(view, module)
    kind = torch.float64 if view.dtype == torch.float64 else torch.float32
    if split == "uniform":
        return torch.rand(source.shape, generator=generator, dtype=kind, device=generator.device).to(view.device)
    noise = torch.randn(source.shape, generator=generator, dtype=kind, device=generator.device).to(view.device)
    spread = source.to(kind).permute(1, 0, 2).flatten(1).std(dim=1, correction=0)
    return noise * spread[None, :, None]


def split_copies(gathered: Tensor, module: ModulePlan, split: Split, random: Tensor | None) -> None:
    """Share the output weights w between source and copy, in place: a and w - a, whose sum is w up to one rounding.

    asymmetric: a = w/2 + e, e ~ N(0, std of the component's w).  uniform: a = w r, r ~ U(0, 1) per entry.
    halves: a = w/2; the copies then have equal gradients and stay equal.
    """
    if not module.copies:
        return
    first, second = ([pair[i] for pair in module.copies] for i in (0, 1))
    whole = gathered[:, first]
    exact = whole.to(torch.float64 if whole.dtype == torch.float64 else torch.float32)
    part = exact / 2
    if random is not None:
        part = exact * random if split == "uniform" else part + random
    part = part.to(whole.dtype)
    gathered[:, first] = part
    gathered[:, second] = (exact - part.to(exact.dtype)).to(whole.dtype)


def halve_copies(gathered: Tensor, module: ModulePlan) -> None:
    """Divide weights of statistics evenly between source and copy, in place."""
    shared = [i for pair in module.copies for i in pair]
    gathered[:, shared] = gathered[:, shared] / 2


def _copied(view: Tensor, module: ModulePlan) -> Tensor:
    return view[:, [module.sources[source] for source, _ in module.copies]]
