"""Which utterance rows and tiles of rows belong to: binary searches on the device, a few dependent loads each."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.config import cdiv

_FAR = tl.constexpr(2**31 - 1)


def search_steps(utterances: int) -> int:
    """`steps` of the searches below: halvings after which one utterance is left."""
    return max(utterances - 1, 0).bit_length()


class Utterances:
    """How the rows of x form utterances: packed with offsets, or padded with or without lengths.

    Attributes:
        rows: number of rows.
        arguments: lengths_ptr ... row_count of `tile_rows`.
        padding: lengths_ptr ... row_count of `spoken`.
    """

    def __init__(self, x: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> None:
        self._packed = offsets is not None
        self.rows = math.prod(x.shape[:-1])
        self._frames = 0 if offsets is not None else x.shape[1]
        self._count = x.shape[0] if offsets is None else offsets.shape[0] - 1
        lengths, offsets = (None if t is None else t.contiguous() for t in (lengths, offsets))
        self.arguments = lengths, offsets, self._count, search_steps(self._count), self._frames, self.rows
        self.padding = lengths, self._frames, self.rows

    def tiles(self, rows: int) -> int:
        """How many tiles of `rows` rows `tile_rows` numbers; some of packed utterances may be empty."""
        if self._packed:
            return self.rows // rows + self._count
        return self._count * cdiv(self._frames, rows)


@triton.jit
def find_utterance(offsets_ptr, utterances, steps, row):
    """The utterance, at least 0, of each packed row: the last one that does not begin behind it."""
    found = row * 0
    for step in range(steps):
        candidate = found + (1 << (steps - 1 - step))
        begin = tl.load(offsets_ptr + candidate, candidate < utterances, _FAR)
        found = tl.where(begin <= row, candidate, found)
    return found


@triton.jit
def _packed_tile(offsets_ptr, utterances, steps, row_count, tile, TILE: tl.constexpr):
    """Utterance u has the tiles from offsets[u] // TILE + u on: enough for its rows, and no sums are needed."""
    found = tile * 0
    for step in range(steps):
        candidate = found + (1 << (steps - 1 - step))
        begin = tl.load(offsets_ptr + candidate, candidate < utterances, 0)
        found = tl.where((candidate < utterances) & (begin // TILE + candidate <= tile), candidate, found)
    begin = tl.maximum(tl.load(offsets_ptr + found), 0)
    end = tl.minimum(tl.load(offsets_ptr + found + 1), row_count)
    return begin, end, end, begin + (tile - begin // TILE - found) * TILE


@triton.jit
def _padded_tile(lengths_ptr, frames, tile, TILE: tl.constexpr):
    tiles = tl.cdiv(frames, TILE)
    utterance = tile // tiles
    begin = utterance * frames
    length = frames
    if lengths_ptr is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths_ptr + utterance), 0), frames)
    return begin, begin + length, begin + frames, begin + tile % tiles * TILE


@triton.jit
def tile_rows(tile, lengths_ptr, offsets_ptr, utterances, steps, frames, row_count, TILE: tl.constexpr):
    """Of tile number `tile`: the rows [begin, end) of its utterance, the end with its padding, and its own first row.

    The first row may lie behind the end. What offsets and lengths hold is not trusted: the rows are within row_count.
    """
    if offsets_ptr is not None:
        found = _packed_tile(offsets_ptr, utterances, steps, row_count, tile, TILE)
    else:
        found = _padded_tile(lengths_ptr, frames, tile, TILE)
    return found


@triton.jit
def spoken(rows, lengths_ptr, frames, row_count):
    """Whether each row is one of the row_count, and not padding."""
    inside = rows < row_count
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + rows // frames, inside, 0)
        inside &= rows % frames < length
    return inside
