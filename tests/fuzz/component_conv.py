"""Random problems of component_conv."""

from __future__ import annotations

import torch

from dmao_kernels import component_conv
from dmao_kernels.ops.component_conv.reference import CONV_ACTIVATIONS, NORMS, component_conv_reference
from tests.fuzz.problem import Draw, Problem, differentiable, rows


def problem(draw: Draw) -> Problem:
    dtype, components, taps = draw.dtype(), draw.size(5, least=1), 2 * draw.size(20) + 1
    width = draw.size(30, least=1)
    channels = components * width
    x, options = rows(draw, 2 * channels, dtype, frames=draw.size(100))
    weight = draw.tensor(channels, taps, dtype=dtype, scale=taps**-0.5)
    bias, norm_weight, norm_bias = (draw.tensor(channels, dtype=dtype) if draw.chance() else None for _ in range(3))
    statistics_weight = None
    if draw.chance():
        statistics_weight = torch.rand(components, generator=draw.generator) + 0.1
    live = draw.some(components) if draw.chance() else None
    norm = draw.one_of(*NORMS)
    if norm == "none":
        norm_weight = norm_bias = statistics_weight = None
    if live is not None:
        dead = torch.ones(components, dtype=torch.bool).index_fill(0, live.long(), False).repeat_interleave(width)
        with torch.no_grad():
            x[..., dead.repeat(2)] = torch.nan
            weight[dead] = torch.nan
    return differentiable(
        draw,
        component_conv,
        component_conv_reference,
        *(x, weight, bias, norm_weight, norm_bias, statistics_weight, live),
        components=components,
        norm=norm,
        # Few channels that happen to be alike have hardly any variance, which would amplify all rounding.
        eps=0.1,
        magnitude=20.0,  # of a norm of one channel: its input and its gradient are differences of equal numbers
        activation=draw.one_of(*CONV_ACTIVATIONS),
        **options,
    )
