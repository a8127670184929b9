"""How tensors of all shapes are cut into pieces for the programs of one launch, and what a program knows of its piece.

A tensor [repeats, components, run] is cut in one of two ways. Few long runs: every run is a block of its own, folded
into rows of `COLUMNS`. Else the tensor is one block, the matrix [repeats, components * run]. A piece is at most
`HEIGHT` rows of at most `COLUMNS` columns of a block. How a tensor is cut depends on its shape alone, and so do the
bits of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dmao_kernels.ops._triton.config import architecture, cdiv
from dmao_kernels.ops._triton.tables import VECTOR, upload

ROWS = tl.constexpr(8)  # of a tile, which a program holds in registers
COLUMNS = tl.constexpr(256)
HEIGHT = tl.constexpr(32)
_FIELDS = tl.constexpr(7)


def options_on(device: torch.device) -> dict[str, int]:
    """What kernels of pieces are launched with: 256 threads, so that each has half a vector or a whole one to read.

    So few registers that two programs have room on a multiprocessor; AMD's compiler has no such option.
    """
    on_nvidia = isinstance(architecture(device), int)
    return {"num_warps": 8, "maxnreg": 128} if on_nvidia else {"num_warps": 4}


@dataclass(frozen=True)
class Cut:
    """How one tensor is cut: in `blocks` of `size` entries, each a matrix whose last row may be shorter.

    folded: whether the blocks are runs. A piece then has one sum, else one per column.
    """

    folded: bool
    blocks: int
    size: int
    height: int
    stride: int
    width: int

    @staticmethod
    def of(repeats: int, components: int, run: int) -> Cut:
        """For a tensor [repeats, components, run] with entries."""
        if repeats < ROWS.value and run >= COLUMNS.value:
            columns = COLUMNS.value
            return Cut(True, repeats * components, run, cdiv(run, columns), columns, columns)
        length = components * run
        return Cut(False, 1, repeats * length, repeats, length, length)

    @property
    def down(self) -> int:
        """Pieces of a block, one below the other."""
        return cdiv(self.height, HEIGHT.value)

    @property
    def pieces(self) -> int:
        """Of the whole tensor."""
        return self.blocks * self.down * cdiv(self.width, COLUMNS.value)

    @property
    def sums(self) -> int:
        """How many numbers the sums of its pieces are."""
        return self.pieces if self.folded else self.down * self.width

    @property
    def even(self) -> bool:
        """Whether all rows of pieces begin and end at multiples of `VECTOR` entries."""
        return (self.size if self.folded else self.width) % VECTOR == 0


class Pieces:
    """The pieces of some tensors, numbered through, for one launch of `count` programs.

    owners: int32 [count], the tensor of each.  shapes: int64 [tensors, 7], of each tensor its cut, its first piece, and
    where its sums begin (-1: it has none).
    """

    def __init__(self, cuts: Sequence[Cut], sums: Sequence[int], device: torch.device) -> None:
        counts = torch.tensor([cut.pieces for cut in cuts], device="cpu")
        firsts = (counts.cumsum(0) - counts).tolist()
        rows = [
            (cut.size, cut.height, cut.stride, cut.width, int(cut.folded), first, place)
            for cut, first, place in zip(cuts, firsts, sums, strict=True)
        ]
        self.count = int(counts.sum())
        self.owners = upload(torch.arange(len(cuts), dtype=torch.int32, device="cpu").repeat_interleave(counts), device)
        self.shapes = upload(torch.tensor(rows, dtype=torch.int64, device="cpu"), device)


@triton.jit
def owner_of_piece(owners):
    """The tensor whose piece this program has."""
    return tl.load(owners + tl.program_id(0)).to(tl.int64)


@triton.jit
def place_of_piece(shapes, owner):
    """Of this program's piece: its block, the first entry of the tensor that belongs to it, the entries from there to
    the end of the block, its rows, their stride, its columns, where its sums begin (negative: nowhere), and whether it
    has one only.
    """
    shape = shapes + owner * _FIELDS
    size, height = tl.load(shape), tl.load(shape + 1)
    stride, width = tl.load(shape + 2), tl.load(shape + 3)
    folded, sums = tl.load(shape + 4), tl.load(shape + 6)
    piece = tl.program_id(0) - tl.load(shape + 5)
    down, across = tl.cdiv(height, HEIGHT), tl.cdiv(width, COLUMNS)
    block, piece_of_block = piece // (down * across), piece % (down * across)
    row, column = piece_of_block // across * HEIGHT, piece_of_block % across * COLUMNS
    begin = row * stride + column
    here = tl.where(folded != 0, piece, row // HEIGHT * width + column)
    return (
        block,
        block * size + begin,
        size - begin,
        tl.minimum(height - row, HEIGHT).to(tl.int32),
        stride,
        tl.minimum(width - column, COLUMNS),
        tl.where(sums < 0, -1, sums + here),
        folded != 0,
    )


@triton.jit
def tile_of_piece(first, rest, stride, columns, row, EVEN: tl.constexpr):
    """Where the entries [ROWS, COLUMNS] of the piece's rows from `row` on lie in the tensor, and which are there.

    EVEN: all rows begin and end at multiples of 8 entries, so that they are read by vectors.
    """
    begin = (row + tl.arange(0, ROWS)).to(tl.int64) * stride
    room = tl.maximum(tl.minimum(rest - begin, columns), 0).to(tl.int32)
    begin += first
    if EVEN:
        begin, room = tl.multiple_of(begin, 8), tl.multiple_of(room, 8)
    column = tl.arange(0, COLUMNS)
    return begin[:, None] + column[None, :], column[None, :] < room[:, None]


@triton.jit
def address(table, place, DTYPE: tl.constexpr, EVEN: tl.constexpr):
    """The pointer that stands at a place of a table. EVEN: to a multiple of 16 bytes."""
    pointer = tl.load(table + place).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, 16) if EVEN else pointer


@triton.jit
def store_sums(sums, place, terms, columns, single):
    """Sums of a piece's terms [ROWS, COLUMNS]: one number, or one per column."""
    by_column = tl.sum(terms, 0)
    if single:
        tl.store(sums + place, tl.sum(by_column, 0))
    else:
        column = tl.arange(0, COLUMNS)
        tl.store(sums + place + column, by_column, mask=column < columns)
