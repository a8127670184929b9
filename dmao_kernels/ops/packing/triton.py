"""pack and unpack as Triton kernels: each is one pass over the rows that it writes.

Floor: memory, every row read and written once. Rows are copied as the widest integers that they consist of, so any
dtype is. Where a row lies is found on the device, from the offsets.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.config import cdiv, power_of_2
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.utterances import find_utterance, search_steps

_TILE_BYTES = 8192  # that a program copies: with 4 warps four loads of 16 bytes a thread
_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


def pack(x: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """x [B, T, ...] -> [rows, ...]."""
    packed = torch.empty((rows, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if packed.numel() and x.numel():
        _launch(_pack, x.contiguous(), packed, rows, offsets, search_steps(x.shape[0]), x.shape[1])
    else:
        packed.zero_()
    return packed


def unpack(packed: Tensor, offsets: Tensor, frames: int) -> Tensor:
    """packed [N, ...] -> [B, frames, ...]."""
    utterances = offsets.shape[0] - 1
    padded = torch.empty((utterances, frames, *packed.shape[1:]), dtype=packed.dtype, device=packed.device)
    if padded.numel() and packed.numel():
        _launch(_unpack, packed.contiguous(), padded, utterances * frames, offsets, frames, packed.shape[0])
    else:
        padded.zero_()
    return padded


def _launch(kernel: Any, source: Tensor, target: Tensor, rows: int, offsets: Tensor, *sizes: int) -> None:
    """Copies rows of `source` to all `rows` rows of `target`."""
    row_bytes = target.numel() * target.element_size() // rows
    begin = source.storage_offset() * source.element_size()
    size, word = next((size, word) for size, word in _WORDS if row_bytes % size == 0 and begin % size == 0)
    width, tile = row_bytes // size, _TILE_BYTES // size
    columns = min(power_of_2(width), tile)
    utterances = offsets.shape[0] - 1
    kernel[(cdiv(rows, tile // columns) * cdiv(width, columns),)](
        source.view(-1).view(word),
        target.view(-1).view(word),
        offsets.contiguous(),
        rows,
        width,
        utterances,
        *sizes,
        ROWS=tile // columns,
        COLUMNS=columns,
    )


@triton.jit
def _tile(width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of a program; neighbouring programs have neighbouring columns."""
    column_tiles = tl.cdiv(width, COLUMNS)
    rows = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    return rows, tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _copy(source_ptr, target_ptr, source_rows, rows, wanted, row_count, columns, width):
    """Copies the wanted rows, and fills the others of the row_count with zeros."""
    inside = columns[None, :] < width
    source = source_ptr + source_rows[:, None].to(tl.int64) * width + columns[None, :]
    target = target_ptr + rows[:, None].to(tl.int64) * width + columns[None, :]
    values = tl.load(source, wanted[:, None] & inside, 0)
    tl.store(target, values, (rows[:, None] < row_count) & inside)


@kernel(varying=["row_count", "utterances", "steps", "frames"])
def _pack(
    x_ptr,
    packed_ptr,
    offsets_ptr,
    row_count,
    width,
    utterances,
    steps,
    frames,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, columns = _tile(width, ROWS, COLUMNS)
    utterance = find_utterance(offsets_ptr, utterances, steps, rows)
    frame = rows - tl.load(offsets_ptr + utterance)
    wanted = (rows < row_count) & (frame >= 0) & (frame < frames)
    _copy(x_ptr, packed_ptr, utterance.to(tl.int64) * frames + frame, rows, wanted, row_count, columns, width)


@kernel(varying=["row_count", "utterances", "frames", "packed_rows"])
def _unpack(
    packed_ptr,
    padded_ptr,
    offsets_ptr,
    row_count,
    width,
    utterances,
    frames,
    packed_rows,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, columns = _tile(width, ROWS, COLUMNS)
    utterance, frame = rows // frames, rows % frames
    begin = tl.load(offsets_ptr + utterance, utterance < utterances, 0)
    end = tl.load(offsets_ptr + utterance + 1, utterance < utterances, 0)
    place = begin + frame
    # Where the sum of what cannot be trusted overflows, it is negative.
    wanted = (begin >= 0) & (place >= 0) & (place < end) & (place < packed_rows)
    _copy(packed_ptr, padded_ptr, place, rows, wanted, row_count, columns, width)
