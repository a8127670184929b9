"""Random problems of block_attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmao_kernels import BlockMask, block_attention
from dmao_kernels.block_mask import BLOCK_SIZES
from dmao_kernels.ops.block_attention.reference import block_attention_reference
from tests.fuzz.problem import Draw, Problem, differentiable
from tests.ops.batches import offsets_of


def problem(draw: Draw) -> Problem:
    dtype = draw.dtype()
    heads, width = draw.size(5), draw.one_of(1, draw.size(80, least=1), 64)
    batch, frames = draw.size(4), draw.size(150)
    lengths = draw.lengths(batch, frames)
    packed = draw.chance()
    leading = (int(lengths.sum()),) if packed else (batch, frames)
    rows: dict[str, Any] = {"offsets": offsets_of(lengths)} if packed else {"lengths": draw.one_of(None, lengths)}
    q, k, v = (draw.tensor(*leading, heads, width, dtype=dtype) for _ in range(3))
    options = {**rows, **visibility(draw, frames), **positions(draw, frames, heads, width, dtype)}
    if draw.chance(0.3):
        options["head_mask"] = torch.rand(heads, generator=draw.generator) < 0.7
    with torch.no_grad():
        for tensor in (q, k, v):
            if rows.get("lengths") is not None:
                tensor[torch.arange(frames) >= lengths[:, None]] = torch.nan
            if "head_mask" in options:
                tensor[..., ~options["head_mask"], :] = torch.nan
    options |= {"p": draw.one_of(0.0, 0.0, 0.2, 0.9), "seed": draw.seed(), "scale": draw.one_of(None, 0.3)}
    # Where each query sees one key, all that q, k and the positions get is a difference of equal numbers of this size.
    magnitude = width**0.5 / (1 - options["p"])
    return differentiable(draw, block_attention, block_attention_reference, q, k, v, magnitude=magnitude, **options)


def visibility(draw: Draw, frames: int) -> dict[str, Any]:
    """Some of window, chunk and block_mask."""
    options: dict[str, Any] = {}
    if draw.chance(0.4):
        options["window"] = (draw.one_of(None, draw.size(40)), draw.one_of(None, draw.size(40)))
    if draw.chance(0.3):
        options["chunk"] = (draw.size(40, least=1), draw.one_of(None, draw.size(3)))
    if draw.chance(0.4):
        block = draw.one_of(*BLOCK_SIZES)
        blocks = -(-frames // block) + draw.size(1)
        grid = torch.rand(blocks, blocks, generator=draw.generator) < draw.one_of(0.0, 0.2, 0.7, 1.0)
        options["block_mask"] = BlockMask.from_dense(grid, block)
    return options


def positions(draw: Draw, frames: int, heads: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Some of rel_pos (reaching beyond the utterances or clamped) and the biases."""
    options: dict[str, Tensor] = {}
    if draw.chance(0.6):
        reach = draw.one_of(max(frames - 1, 0), draw.size(8), frames + draw.size(8))
        shape = (2 * reach + 1, *draw.one_of((heads,), ()), width)
        options["rel_pos"] = draw.tensor(*shape, dtype=dtype)
        if draw.chance():
            options["position_bias"] = draw.tensor(heads, width, dtype=dtype)
    if draw.chance():
        options["content_bias"] = draw.tensor(heads, width, dtype=dtype)
    return options
