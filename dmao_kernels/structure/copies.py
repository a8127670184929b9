"""Whether copies have come to differ from their sources: the health metric of growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.plan import Plan
from dmao_kernels.structure.shards import reshard, whole

Pairs = Mapping[str, Sequence[tuple[int, int]]]


@torch.no_grad()
def copy_cosines(elastic: Elastic, copies: Pairs) -> dict[str, dict[str, list[float]]]:
    """Cosine of every source with its copy: {module: {"input": [...], "output": [...]}}, in order.

    copies: (source, copy) pairs as ``EditReport.copies`` gives them (``follow_copies`` after further edits).
    "output" looks at the output tensors, "input" at all other parameters of two or more axes (vectors, such
    as the gains of a norm, are alike in all components and would hide the difference). 1 means that the copy
    is inert.
    """
    cosines: dict[str, dict[str, list[float]]] = {}
    reshard(elastic.model)
    for name, pairs in copies.items():
        m = elastic.modules[name]
        sides: dict[str, list[Tensor]] = {"input": [], "output": []}
        for tensor_name, tensor in m.tensors():
            if m.place(tensor_name).is_parameter and tensor.dim() > 1:
                side = "output" if tensor_name in m.layout.output else "input"
                sides[side].append(_by_component(m, tensor_name, tensor))
        first, second = ([pair[i] for pair in pairs] for i in (0, 1))
        cosines[name] = {}
        for side, parts in sides.items():
            if parts:
                both = torch.cat(parts, dim=1)
                cosines[name][side] = cosine_similarity(both[first], both[second]).tolist()
    return cosines


def follow_copies(copies: Pairs, plan: Plan) -> dict[str, tuple[tuple[int, int], ...]]:
    """The pairs after a further edit; those of which one is dropped are left out."""
    sources = plan.sources
    followed = {}
    for name, pairs in copies.items():
        if name not in sources:
            followed[name] = tuple(pairs)
            continue
        place: dict[int, int] = {}
        for new, old in enumerate(sources[name]):
            place.setdefault(old, new)
        if kept := tuple((place[a], place[b]) for a, b in pairs if a in place and b in place):
            followed[name] = kept
    return followed


def _by_component(m: ElasticModule, name: str, tensor: Tensor) -> Tensor:
    return m.view(name, whole(tensor.detach())).double().permute(1, 0, 2).flatten(1)
