"""Random problems of depthwise_conv1d."""

from __future__ import annotations

from dmao_kernels import depthwise_conv1d
from dmao_kernels.ops.depthwise_conv1d.reference import depthwise_conv1d_reference
from tests.fuzz.problem import Draw, Problem, differentiable, rows


def problem(draw: Draw) -> Problem:
    dtype, channels, taps = draw.dtype(), draw.size(80), 2 * draw.size(35) + 1
    x, options = rows(draw, channels, dtype, frames=draw.size(120))
    weight = draw.tensor(channels, taps, dtype=dtype, scale=taps**-0.5)
    bias = draw.tensor(channels, dtype=dtype) if draw.chance() else None
    return differentiable(draw, depthwise_conv1d, depthwise_conv1d_reference, x, weight, bias, **options)
