"""Random problems of component_ffn."""

from __future__ import annotations

import torch

from dmao_kernels import component_ffn
from dmao_kernels.ops.component_ffn.reference import ACTIVATIONS, component_ffn_reference
from tests.fuzz.problem import Draw, Problem, differentiable


def problem(draw: Draw) -> Problem:
    dtype = draw.dtype()
    d, d_out, components = draw.size(130), draw.size(130), draw.size(6, least=1)
    width = draw.size(150)
    hidden = components * width
    shape = (*draw.one_of((), (draw.size(3),)), draw.size(200), d)
    x = draw.tensor(*shape, dtype=dtype)
    w1 = draw.tensor(hidden, d, dtype=dtype, scale=max(d, 1) ** -0.5)
    b1 = draw.tensor(hidden, dtype=dtype) if draw.chance() else None
    w2 = draw.tensor(d_out, hidden, dtype=dtype, scale=max(hidden, 1) ** -0.5)
    b2 = draw.tensor(d_out, dtype=dtype) if draw.chance() else None
    live = draw.some(components) if draw.chance() else None
    if live is not None:  # dead units may hold anything
        dead = torch.ones(components, dtype=torch.bool).index_fill(0, live.long(), False).repeat_interleave(width)
        with torch.no_grad():
            w1[dead] = torch.nan
            w2[:, dead] = torch.nan
    return differentiable(
        draw,
        component_ffn,
        component_ffn_reference,
        *(x, w1, b1, w2, b2, live),
        components=components,
        p=draw.one_of(0.0, 0.1, 0.5, 0.95),
        seed=draw.seed(),
        activation=draw.one_of(*ACTIVATIONS),
    )
