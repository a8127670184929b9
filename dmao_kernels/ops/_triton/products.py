"""Products of tiles in which one axis may be gathered: what the linear layers over live components and blocks share.

A list of ids names things of WIDTH neighbouring elements each (components of hidden units, blocks of columns); position
p of the list is element p % WIDTH of thing ids[p // WIDTH]. Without a list position p is element p.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.config import Config, Table, cdiv
from dmao_kernels.ops._triton.launch import kernel

_PLANE_TILE = 1024
_LONGEST_VECTOR = 16
_WORD = 2**31


def _tile(rows: int, columns: int, step: int, num_warps: int, num_stages: int) -> Config:
    return {"ROWS": rows, "COLUMNS": columns, "STEP": step, "num_warps": num_warps, "num_stages": num_stages}


# "... few": for layers and batches that would not fill the chip with the other tiles. "... hidden", "... weights": for
# products that end with more than a sum, and for sums over tokens, where others were measured to be better on one H200
# (docs/GPU.md). All else is chosen by what the machine code asks for.
TILES: Table = {
    80: {
        "half": [_tile(128, 128, 32, 8, 4), _tile(128, 64, 32, 4, 4)],
        "half few": [_tile(64, 64, 32, 4, 4)],
        "tf32": [_tile(128, 64, 32, 8, 3)],
        "tf32 few": [_tile(64, 64, 32, 4, 3)],
        "float32": [_tile(64, 64, 16, 4, 3)],
        "float32 few": [_tile(32, 64, 16, 4, 3)],
    },
    90: {
        "half": [_tile(128, 128, 64, 8, 3), _tile(128, 256, 64, 8, 4)],
        "half hidden": [_tile(64, 128, 64, 4, 3), _tile(128, 128, 64, 4, 3)],
        "half weights": [_tile(128, 128, 64, 8, 5), _tile(128, 256, 64, 8, 4)],
        "half few": [_tile(64, 128, 64, 4, 4), _tile(64, 64, 64, 4, 4)],
        "tf32": [_tile(128, 128, 32, 8, 3)],
        "tf32 few": [_tile(64, 64, 32, 4, 3)],
        "float32": [_tile(64, 64, 16, 4, 3)],
        "float32 few": [_tile(32, 64, 16, 4, 3)],
    },
    100: {
        "half": [_tile(128, 128, 64, 8, 3), _tile(128, 128, 64, 8, 4)],
        "half few": [_tile(64, 128, 64, 4, 4), _tile(64, 64, 64, 4, 4)],
        "tf32": [_tile(128, 128, 32, 8, 3)],
        "tf32 few": [_tile(64, 64, 32, 4, 3)],
        "float32": [_tile(64, 64, 16, 4, 3)],
        "float32 few": [_tile(32, 64, 16, 4, 3)],
    },
    "hip": {
        "half": [_tile(128, 128, 32, 8, 2), _tile(128, 128, 64, 8, 2)],
        "half few": [_tile(64, 64, 64, 4, 2)],
        "tf32": [_tile(128, 64, 32, 8, 2)],
        "tf32 few": [_tile(64, 64, 32, 4, 2)],
        "float32": [_tile(128, 64, 32, 8, 2)],
        "float32 few": [_tile(64, 64, 32, 4, 2)],
    },
    "interpreter": {
        kind: [_tile(32, 64, 32, 4, 1)] for kind in ("half", "half few", "tf32", "tf32 few", "float32", "float32 few")
    },
}
TILES[120] = TILES[80]  # which it resembles: no wgmma, little shared memory


def vector_of(width: int) -> int:
    """The greatest power of two, up to what one load moves, that divides the width of the things of a list."""
    return math.gcd(width, _LONGEST_VECTOR)


def rows_of(x: Tensor) -> Tensor:
    """x [..., width] as rows whose elements stand side by side; in place where that is so."""
    rows = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def weight_rows(op: str, name: str, w: Tensor) -> Tensor:
    """`rows_of` a weight, within which kernels count in 32 bits."""
    rows = rows_of(w)
    if rows.shape[0] * rows.stride(0) >= _WORD:
        raise ValueError(
            f"{op}: Triton's kernels reach fewer than 2^31 elements of {name}, got {list(w.shape)}, rows "
            f"{rows.stride(0)} apart"
        )
    return rows


def gathering(config: Config) -> Config:
    """The configuration for a loop that reads a list: its loads take two turns, so twice the stages hide as much."""
    return {**config, "num_stages": 2 * config["num_stages"] - 1}


@triton.jit
def elements(ids, position, inside, things, WIDTH: tl.constexpr, VECTOR: tl.constexpr):
    """The elements at positions that are inside the list; ids are clamped to [0, things).

    VECTOR: so many neighbouring positions, from a multiple of it on, are neighbouring elements, too.
    """
    if ids is None:
        element = position
    else:
        thing = tl.load(ids + position // WIDTH, mask=inside, other=0)
        thing = tl.minimum(tl.maximum(thing, 0), things - 1)
        element = thing * WIDTH + position % WIDTH
        if VECTOR > 1:
            element = tl.max_contiguous(tl.multiple_of(element, VECTOR), VECTOR)
    return element


@triton.jit
def _add_product(sums, part, a, b, step, PRECISION: tl.constexpr):
    """(sums, part) with a b added.

    Tensor cores sum up a whole product at once. In float32 elements follow each other, so a sum of thousands is one of
    parts, as libraries have it, or its error grows with its length.
    """
    STEPS: tl.constexpr = 8  # of a part
    if a.dtype == tl.float32 and PRECISION == "ieee":
        part = tl.dot(a, b, part, input_precision=PRECISION)
        if step % STEPS == STEPS - 1:
            sums += part
            part = tl.zeros_like(part)
    else:
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums, part


@triton.jit
def add_products(
    sums,
    left,
    left_inside,
    right,
    right_step,
    right_inside,
    depth,
    ids,
    things,
    width,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sums [R, C] + left right over `depth` positions of the list of ids.

    left: pointers [R, 1] to rows of neighbouring elements, at positions or, with GATHER_LEFT, at elements.
    right: pointers [1, C], right_step from element to element.
    width: where elements end, if the last thing may stick out; else None.
    """
    part = tl.zeros_like(sums)
    for first in range(0, depth, STEP):
        position = first + tl.arange(0, STEP)
        inside = position < depth
        element = elements(ids, position, inside, things, WIDTH, VECTOR)
        if width is not None:
            inside = inside & (element < width)
        left_element = element if GATHER_LEFT else position
        a = tl.load(left + left_element[None, :], mask=left_inside & inside[None, :], other=0.0)
        b = tl.load(right + element[:, None] * right_step, mask=inside[:, None] & right_inside, other=0.0)
        sums, part = _add_product(sums, part, a, b, first // STEP, PRECISION)
    return sums + part


@triton.jit
def halves(tile):
    """The left and the right half of the columns of a tile; what follows then takes half of the registers at a time."""
    return tile.reshape(tile.shape[0], 2, tile.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def add_products_of_tokens(
    sums,
    left,
    left_stride,
    left_inside,
    right,
    right_stride,
    right_inside,
    begin,
    end,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sums [M, N] + the sum over tokens begin ... end - 1 of left[token, m] right[token, n].

    left: pointers [M, 1], right: pointers [1, N] to the columns in the row of token 0.
    """
    step = tl.arange(0, STEP)
    left += begin.to(tl.int64) * left_stride + step[None, :] * left_stride
    right += begin.to(tl.int64) * right_stride + step[:, None] * right_stride
    part = tl.zeros_like(sums)
    for token in range(begin, end, STEP):
        inside = token + step < end
        a = tl.load(left, mask=left_inside & inside[None, :], other=0.0)
        b = tl.load(right, mask=inside[:, None] & right_inside, other=0.0)
        sums, part = _add_product(sums, part, a, b, (token - begin) // STEP, PRECISION)
        left += STEP * left_stride
        right += STEP * right_stride
    return sums + part


def token_spans(tokens: int, tiles: int, wanted: int, step: int) -> tuple[int, int]:
    """(spans, tokens of a span) into which a sum over tokens is cut, so that `wanted` programs have work.

    A span is long enough for the second pass, over the sums of all spans, not to matter.
    """
    shortest = 512
    spans = max(min(wanted // max(tiles, 1), cdiv(tokens, shortest)), 1)
    length = cdiv(tokens, spans * step) * step
    return max(cdiv(tokens, length), 1) if length else 1, max(length, step)


@kernel(varying=["size", "planes"])
def _sum_planes_kernel(source, target, size, planes, TILE: tl.constexpr):
    # Floor: 4 bytes read per plane and element.
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < size
    sums = tl.zeros([TILE], tl.float32)
    for plane in range(planes):
        sums += tl.load(source + plane * size.to(tl.int64) + at, mask=inside, other=0.0)
    tl.store(target + at, sums.to(target.dtype.element_ty), mask=inside)


def sum_planes(planes: Tensor, target: Tensor) -> None:
    """target = planes.sum(0), in float32 and in the order of the planes; both contiguous."""
    size = target.numel()
    if size:
        grid = (cdiv(size, _PLANE_TILE),)
        _sum_planes_kernel[grid](planes, target, size, planes.shape[0], TILE=_PLANE_TILE, num_warps=4)
