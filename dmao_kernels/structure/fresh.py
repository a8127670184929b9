"""First values of a component that has no source: a revived module starts where a new one would."""

from __future__ import annotations

import copy
import math
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmao_kernels.structure.places import Gate

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import ElasticModule


def fresh_values(m: ElasticModule, count: int, seed: int) -> dict[str, Tensor]:
    """Values [repeats, count, run] of ``count`` fresh components, for every tensor of the module.

    Output tensors are zero, so that the function is unchanged while gradients flow; even buffers and gates
    are one. Every other tensor is what its owner's ``reset_parameters`` draws for a module of that width;
    without such a method: matrices Kaiming-uniform as in nn.Linear, vectors called weight one, other vectors
    zero.
    """
    devices = sorted({t.device.index or 0 for _, t in m.tensors() if t.device.type == "cuda"})
    values: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed ^ zlib.crc32(m.name.encode()))  # modules of one shape shall not begin alike
        templates: dict[int, nn.Module] = {}
        for name, tensor in m.tensors():
            pattern = m.layout.pattern(name)
            place = m.place(name)
            template = templates.get(id(place.owner))
            if template is None and name not in m.layout.output and name not in m.layout.even:
                template = templates[id(place.owner)] = _template(m, place.owner, count)
            if name in m.layout.output:
                value = _filled(0.0, tensor, pattern.shape(count, m.sizes))
            elif name in m.layout.even or isinstance(place.owner, Gate):
                value = _filled(1.0, tensor, pattern.shape(count, m.sizes))
            else:
                value = getattr(template, place.leaf).detach()
            values[name] = value.reshape(pattern.triple(count, m.sizes))
    return values


def _filled(value: float, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A plain tensor, also where ``like`` is sharded."""
    return torch.full(shape, value, dtype=like.dtype, device=like.device)


def _template(m: ElasticModule, owner: nn.Module, count: int) -> nn.Module:
    """A copy of ``owner`` with ``count`` components, newly initialised."""
    template = copy.deepcopy(owner)
    resized: list[tuple[str, Tensor]] = []
    for name, tensor in m.tensors():
        place = m.place(name)
        if place.owner is owner:
            new = _filled(0.0, tensor, m.layout.pattern(name).shape(count, m.sizes))
            if place.is_parameter:
                template._parameters[place.leaf] = nn.Parameter(new, requires_grad=False)
            else:
                template._buffers[place.leaf] = new
            resized.append((place.leaf, new))
    if callable(reset := getattr(template, "reset_parameters", None)):
        reset()
        return template
    for leaf, tensor in resized:
        if tensor.dim() > 1:
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
        else:
            tensor.fill_(1.0 if leaf == "weight" else 0.0)
    return template
