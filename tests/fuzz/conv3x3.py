"""Random problems of conv3x3."""

from __future__ import annotations

import torch

from dmao_kernels import conv3x3
from dmao_kernels.ops.conv3x3.reference import conv3x3_reference
from tests.fuzz.problem import Draw, Problem, differentiable


def problem(draw: Draw) -> Problem:
    dtype, channels, outputs = draw.dtype(), draw.size(40, least=1), draw.size(40, least=1)
    images, height, width = draw.size(3, least=1), draw.size(40, least=1), draw.size(20, least=1)
    pooling = draw.one_of(None, (2, 1), (draw.size(4, least=1), draw.size(4, least=1)))
    x = draw.tensor(images, height, width, channels, dtype=dtype)
    weight = draw.tensor(outputs, channels, 3, 3, dtype=dtype, scale=(9 * channels) ** -0.5)
    bias = draw.tensor(outputs, dtype=dtype) if draw.chance() else None
    if pooling is not None:
        # Sums of whole numbers are exact: nobody chooses another pixel of a window because of rounding.
        with torch.no_grad():
            for tensor in (x, weight) if bias is None else (x, weight, bias):
                tensor.copy_((tensor * 2 / tensor.abs().max()).round())
    rows = height // (1 if pooling is None else pooling[0])
    valid = torch.tensor([[draw.chance(0.8) for _ in range(rows)] for _ in range(images)]).view(images, rows).bool()
    valid = valid if draw.chance() else None
    return differentiable(draw, conv3x3, conv3x3_reference, x, weight, bias, valid=valid, pooling=pooling)
