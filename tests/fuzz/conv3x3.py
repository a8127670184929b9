"""Random problems of conv3x3."""

from __future__ import annotations

from dmao_kernels import conv3x3
from dmao_kernels.ops.conv3x3.reference import conv3x3_reference
from tests.fuzz.problem import Draw, Problem, differentiable


def problem(draw: Draw) -> Problem:
    dtype, channels, outputs = draw.dtype(), draw.size(40, least=1), draw.size(40, least=1)
    x = draw.tensor(draw.size(3, least=1), draw.size(40, least=1), draw.size(20, least=1), channels, dtype=dtype)
    weight = draw.tensor(outputs, channels, 3, 3, dtype=dtype, scale=(9 * channels) ** -0.5)
    bias = draw.tensor(outputs, dtype=dtype) if draw.chance() else None
    return differentiable(draw, conv3x3, conv3x3_reference, x, weight, bias)
