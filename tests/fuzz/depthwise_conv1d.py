"""Random problems of depthwise_conv1d, and the rows that other operations' problems have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmao_kernels import depthwise_conv1d
from dmao_kernels.ops.depthwise_conv1d.reference import depthwise_conv1d_reference
from tests.fuzz.problem import Draw, Problem, differentiable


def offsets_of(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])


def rows(draw: Draw, width: int, dtype: torch.dtype, frames: int) -> tuple[Tensor, dict[str, Any]]:
    """x, packed or padded with NaN beyond the lengths, and what tells its utterances apart."""
    batch = draw.size(4)
    lengths = draw.lengths(batch, frames)
    if draw.chance():
        return draw.tensor(int(lengths.sum()), width, dtype=dtype), {"offsets": offsets_of(lengths)}
    x = draw.tensor(batch, frames, width, dtype=dtype)
    if draw.chance(0.2):
        return x, {}
    with torch.no_grad():
        x[torch.arange(frames) >= lengths[:, None]] = torch.nan
    return x, {"lengths": lengths}


def problem(draw: Draw) -> Problem:
    dtype, channels, taps = draw.dtype(), draw.size(80), 2 * draw.size(35) + 1
    x, options = rows(draw, channels, dtype, frames=draw.size(120))
    weight = draw.tensor(channels, taps, dtype=dtype, scale=taps**-0.5)
    bias = draw.tensor(channels, dtype=dtype) if draw.chance() else None
    return differentiable(draw, depthwise_conv1d, depthwise_conv1d_reference, x, weight, bias, **options)
