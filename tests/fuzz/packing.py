"""Random problems of pack and unpack."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels import pack, unpack
from dmao_kernels.ops.packing.reference import pack_reference, unpack_reference
from tests.fuzz.problem import Draw, Problem, differentiable
from tests.ops.batches import offsets_of


def problem(draw: Draw) -> Problem:
    dtype = draw.one_of(torch.float32, torch.bfloat16, torch.float64)
    frames = draw.size(60)
    lengths = draw.lengths(draw.size(5), frames)
    trailing = draw.one_of((), (draw.size(20),), (draw.size(3), draw.size(9)))
    if draw.chance():
        packed = draw.tensor(int(lengths.sum()), *trailing, dtype=dtype)
        return differentiable(draw, unpack, unpack_reference, packed, offsets_of(lengths), frames)
    x = draw.tensor(len(lengths), frames, *trailing, dtype=dtype)
    with torch.no_grad():
        x[torch.arange(frames) >= lengths[:, None]] = torch.nan

    def reference(x: Tensor, lengths: Tensor) -> Tensor:
        return pack_reference(x, offsets_of(lengths), int(lengths.sum()))

    return differentiable(draw, lambda *arguments: pack(*arguments)[0], reference, x, lengths)
