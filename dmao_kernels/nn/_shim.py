"""Throw-away stand-ins for the layout and component_ffn branches; removed when those are merged."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class ComponentLayout:
    family: str
    tensors: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)


def feedforward_layout(**names: str) -> ComponentLayout:
    return ComponentLayout("feedforward", {"w1.weight": "(C u) d"}, dict(names))


def glu_convolution_layout(**names: str) -> ComponentLayout:
    return ComponentLayout("glu_convolution", {}, dict(names))


def attention_layout(**names: str) -> ComponentLayout:
    return ComponentLayout("attention", {}, dict(names))


def component_ffn(x, w1, b1, w2, b2, live=None, *, components=1, p=0.0, seed=None, activation="silu"):
    h = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}[activation](F.linear(x, w1, b1))
    if p > 0.0:
        keep = torch.rand(h.shape, generator=torch.Generator().manual_seed(int(seed))) >= p
        h = h * keep / (1 - p)
    return F.linear(h, w2, b2)
