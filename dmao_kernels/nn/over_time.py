"""Convolution over time, of whole utterances or within chunks.

Within chunks a frame sees earlier frames, and later ones of its own chunk only. Each chunk, with the frames before it
that a filter reaches, is convolved as an utterance of its own, and what comes out of the frames before it is left out.
So the kernels of whole utterances serve, and behind a chunk's end there are zeros, as behind an utterance's (dynamic
chunk convolution: Li et al., 2023, arXiv 2304.09325).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dmao_kernels.nn.chunks import ChunkRows
from dmao_kernels.nn.common import require_plain
from dmao_kernels.nn.residual import Rows
from dmao_kernels.ops import depthwise_conv1d

Convolve = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def convolve(convolution: Convolve, x: Tensor, rows: Rows, size: int | None, reach: int) -> Tensor:
    """`convolution(x, lengths, offsets)` of ``x`` [B, T, c], or packed [N, c], within chunks of `size` frames.

    size: None convolves whole utterances.  reach: frames before itself that a frame sees.

    Raises ValueError where the rows were cut beforehand, but not so, or rows of another shape were. Utterances of other
    lengths in rows of the same shape are not told apart: that would be waited for.
    """
    if size is None:
        return convolution(x, rows.lengths, rows.offsets)
    chunks = rows.chunks
    if chunks is None:
        chunks = _cut(x, rows, size, reach)
    elif chunks.size != size or chunks.reach < reach:
        raise ValueError(
            f"chunks must be of {size} frames that reach {reach} back, got {chunks.size} and {chunks.reach}"
        )
    else:
        _require_rows_of(chunks, x, rows)
    flat = x if rows.offsets is not None else x.flatten(0, 1)
    y = convolution(flat.index_select(0, chunks.source), None, chunks.offsets).index_select(0, chunks.own)
    if rows.offsets is not None:
        return y
    padded = y.new_zeros(x.shape[0] * x.shape[1], y.shape[-1])
    return padded.index_copy(0, chunks.source.index_select(0, chunks.own), y).unflatten(0, x.shape[:2])


def convolve_depthwise(convolution: nn.Conv1d, x: Tensor, rows: Rows, size: int | None) -> Tensor:
    """A depthwise convolution, padding "same", of ``x`` [B, T, c] or packed [N, c], within chunks; see `convolve`."""
    require_plain("convolution over time", nn.Conv1d, depthwise=convolution)
    weight = convolution.weight.squeeze(1)
    return convolve(
        lambda part, lengths, offsets: depthwise_conv1d(
            part, weight, convolution.bias, lengths=lengths, offsets=offsets
        ),
        x,
        rows,
        size,
        reach_of(convolution),
    )


def reach_of(convolution: nn.Conv1d) -> int:
    """Frames before itself that a frame sees through a filter."""
    return convolution.weight.shape[-1] // 2


def _cut(x: Tensor, rows: Rows, size: int, reach: int) -> ChunkRows:
    if rows.offsets is not None:
        return ChunkRows.of(rows.offsets.diff(), size, reach)
    batch, frames = x.shape[:2]
    lengths = torch.full((batch,), frames, device=x.device) if rows.lengths is None else rows.lengths
    return ChunkRows.of(lengths, size, reach, frames)


def _require_rows_of(chunks: ChunkRows, x: Tensor, rows: Rows) -> None:
    padded = None if rows.offsets is not None else (x.shape[0], x.shape[1])
    if chunks.padded != padded:
        expected, found = ("packed" if of is None else f"padded [B, T] = {list(of)}" for of in (padded, chunks.padded))
        raise ValueError(f"chunks must be of rows that are {expected}, got {found}")
    number = x.shape[:-1].numel()
    if rows.lengths is None and chunks.own.numel() != number:
        raise ValueError(f"chunks must be of {number} rows, got {chunks.own.numel()}")
