"""Depthwise convolution along time, and the sums for the gradient of its taps, over packed or padded utterances.

Floor: 2 N C k flops each at the FMA peak. A program is one warp with a few channels a lane. Rows and taps of a tile
stand in registers as one tensor each, and all loops over them are unrolled: 16 rows and a chunk of 8 taps are 128
multiply-adds a channel for 31 loads, those of taps included. Chunks follow each other in a loop, so longer filters take
neither more registers nor more code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.config import Table, cdiv, choose, power_of_2
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.live import Channels, channels_of
from dmao_kernels.ops._triton.sums import add_parts
from dmao_kernels.ops._triton.utterances import Utterances, tile_rows

_ROWS = 16
_MOST_TAPS = 8  # of a chunk
# Four columns a lane take fewest instructions, where the registers suffice: ptxas would spill some on sm_80, and on
# sm_100 where gates stand beside the sums.
_FOUR, _TWO = [{"COLUMNS": 128}], [{"COLUMNS": 64}]
_TABLE: Table = {
    80: {"half": _TWO, "half gated": _TWO, "float32": _FOUR},
    90: {"half": _FOUR, "half gated": _TWO, "float32": _FOUR},
    "hip": {"half": _FOUR, "half gated": _TWO, "float32": _FOUR},
}
_GATHERED = 128  # columns of a program that gathers taps
_PARTS = 128  # of the tiles of rows in `tap_gradients`, at most


def _tile(taps: int, source: Tensor, gated: bool = False) -> dict[str, int]:
    """Taps of a chunk and columns of a tile, down to two a lane where the last tile would have no use for more."""
    width, half = source.shape[-1], source.element_size() == 2
    kind = "float32" if not half else "half gated" if gated else "half"
    columns = choose("depthwise_conv1d", _TABLE, kind, source.device)["COLUMNS"]
    columns = columns if (width - 1) % columns >= columns // 2 else max(columns // 2, 64)
    return {"TAPS": min(power_of_2(taps), _MOST_TAPS), "COLUMNS": columns}


def gather_taps(weight: Tensor, bias: Tensor | None, channels: Channels) -> Tensor:
    """The taps of the listed channels, then their bias: float32 [k + 1, listed], zero where nothing lives."""
    taps = weight.shape[1]
    gathered = torch.empty((taps + 1, channels.listed), dtype=torch.float32, device=weight.device)
    bias = None if bias is None else bias.contiguous()
    grid = (cdiv(channels.listed, _GATHERED), taps + 1)
    _gather_taps[grid](weight.contiguous(), bias, gathered, taps, *channels.arguments, COLUMNS=_GATHERED)
    return gathered


def convolve(source: Tensor, taps: Tensor, out: Tensor, utterances: Utterances) -> None:
    """out[t] = bias + sum over j of source[t + j - k // 2] taps[j], and zero in the padding; all as wide as `taps`."""
    _launch_convolution(source, taps, out, utterances, None, None)


def convolve_backward(
    grad: Tensor, taps: Tensor, grad_source: Tensor, utterances: Utterances, gates: Tensor | None, channels: Channels
) -> None:
    """The gradient by `source` of `convolve`, or, through the GLU, by the values and gates that made it.

    `gates` and then grad_source are as wide as values and gates of all stored channels; dead ones are left alone.
    """
    _launch_convolution(grad, taps, grad_source, utterances, gates, channels)


def _launch_convolution(
    source: Tensor,
    taps: Tensor,
    out: Tensor,
    utterances: Utterances,
    gates: Tensor | None,
    channels: Channels | None,
) -> None:
    count, width = taps.shape[0] - 1, taps.shape[1]
    tile = _tile(count, source, gates is not None)
    stored = Channels(width) if channels is None else channels
    _convolve[(utterances.tiles(_ROWS) * cdiv(width, tile["COLUMNS"]),)](
        source,
        taps,
        out,
        gates,
        *utterances.arguments,
        count,
        stored.stored,
        *stored.arguments,
        ROWS=_ROWS,
        BACKWARD=channels is not None,
        **tile,
        num_warps=1,
    )


def tap_gradients(
    grad: Tensor,
    source: Tensor,
    utterances: Utterances,
    channels: Channels,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
) -> None:
    """The gradients by weight and bias, of live channels, from rows of the listed ones."""
    taps, width = grad_weight.shape[1], channels.listed
    tile = _tile(taps, source)
    tiles = utterances.tiles(_ROWS)
    part_tiles = cdiv(tiles, _PARTS)
    parts = cdiv(tiles, part_tiles)
    partial = torch.empty((parts, taps + 1, width), dtype=torch.float32, device=grad.device)
    _tap_sums[(cdiv(width, tile["COLUMNS"]), cdiv(taps, tile["TAPS"]), parts)](
        grad,
        source,
        partial,
        *utterances.arguments,
        tiles,
        part_tiles,
        taps,
        width,
        ROWS=_ROWS,
        **tile,
        num_warps=1,
    )
    add_parts(partial, grad_weight, grad_bias, channels)


@kernel(varying=["taps", "components"])
def _gather_taps(
    weight_ptr,
    bias_ptr,
    out_ptr,
    taps,
    live_ptr,
    listed,
    components,
    width,
    ALIGN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    place = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tap = tl.program_id(1)
    channel, _, inside = channels_of(live_ptr, place, listed, components, width, ALIGN)
    value = tl.load(weight_ptr + channel * taps + tap, inside & (tap < taps), 0.0).to(tl.float32)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + channel, inside & (tap == taps), 0.0).to(tl.float32)
    tl.store(out_ptr + tap * listed + place, value, place < listed)


@triton.jit
def _load_rows(ptr, stride, first, begin, end, columns, inside, COUNT: tl.constexpr):
    """Rows first ... first + COUNT - 1 as a tuple of float32 tensors, zero outside [begin, end)."""
    pointers = ptr + first.to(tl.int64) * stride + columns
    length = tl.maximum(end - begin, 0).to(tl.uint32)
    rows: tl.tuple = ()
    for i in tl.static_range(COUNT):
        wanted = inside & ((first - begin + i).to(tl.uint32) < length)
        rows += (tl.load(pointers + i * stride, wanted, 0.0).to(tl.float32),)
    return rows


@triton.jit
def _load_taps(taps_ptr, taps, first, width, columns, inside, COUNT: tl.constexpr, MIRRORED: tl.constexpr):
    rows: tl.tuple = ()
    for i in tl.static_range(COUNT):
        tap = first + i
        place = taps - 1 - tap if MIRRORED else tap
        rows += (tl.load(taps_ptr + place * width + columns, inside & (tap < taps), 0.0),)
    return rows


@triton.jit
def _repeat(row, COUNT: tl.constexpr):
    rows: tl.tuple = ()
    for _ in tl.static_range(COUNT):
        rows += (row,)
    return rows


@triton.jit
def _sum(rows, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Of COUNT rows, a power of two, by halves: short sums round less."""
    total = rows[FIRST]
    if COUNT > 1:
        total = _sum(rows, FIRST, COUNT // 2) + _sum(rows, FIRST + COUNT // 2, COUNT // 2)
    return total


@triton.jit
def _ungate(grad, gates_ptr, row, stored, channel, inside):
    """Through the GLU: the place of one row's values, and the gradients by values and gates."""
    place = row.to(tl.int64) * 2 * stored + channel
    value = tl.load(gates_ptr + place, inside, 0.0).to(tl.float32)
    opening = tl.sigmoid(tl.load(gates_ptr + place + stored, inside, 0.0).to(tl.float32))
    for_gate = grad * value * opening * (1 - opening)
    return place, grad * opening, for_gate


@kernel(varying=["utterances", "steps", "frames", "row_count", "taps", "components"])
def _convolve(
    source_ptr,
    taps_ptr,
    out_ptr,
    gates_ptr,
    lengths_ptr,
    offsets_ptr,
    utterances,
    steps,
    frames,
    row_count,
    taps,
    stored,
    live_ptr,
    listed,
    components,
    width,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    column_tiles = tl.cdiv(listed, COLUMNS)
    columns = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < listed
    begin, end, limit, first = tile_rows(
        tl.program_id(0) // column_tiles, lengths_ptr, offsets_ptr, utterances, steps, frames, row_count, ROWS
    )
    bias = tl.zeros((COLUMNS,), tl.float32)
    if not BACKWARD:
        bias = tl.load(taps_ptr + taps * listed + columns, inside, 0.0)
    sums = _repeat(bias, ROWS)
    # No taps for a tile that lies in the padding.
    for tap in range(0, tl.where(first < end, taps, 0), TAPS):
        chunk = _load_taps(taps_ptr, taps, tap, listed, columns, inside, TAPS, BACKWARD)
        rows = _load_rows(source_ptr, listed, first - taps // 2 + tap, begin, end, columns, inside, ROWS + TAPS - 1)
        # Row by row: each is needed no longer than for its own products.
        for i in tl.static_range(ROWS + TAPS - 1):
            added: tl.tuple = ()
            for r in tl.static_range(ROWS):
                total = sums[r]
                if i - r >= 0 and i - r < TAPS:
                    total = tl.fma(rows[i], chunk[i - r], total)
                added += (total,)
            sums = added
    if gates_ptr is not None:
        channel, _, inside = channels_of(live_ptr, columns, listed, components, width, ALIGN)
    for r in tl.static_range(ROWS):
        row = first + r
        total = tl.where(row < end, sums[r], 0.0)
        written = inside & (row >= begin) & (row < limit)
        if gates_ptr is not None:
            place, for_value, for_gate = _ungate(
                total, gates_ptr, row, stored, channel, inside & (row >= begin) & (row < end)
            )
            tl.store(out_ptr + place, for_value.to(out_ptr.dtype.element_ty), written)
            tl.store(out_ptr + place + stored, for_gate.to(out_ptr.dtype.element_ty), written)
        else:
            tl.store(out_ptr + row.to(tl.int64) * listed + columns, total.to(out_ptr.dtype.element_ty), written)


@kernel(varying=["utterances", "steps", "frames", "row_count", "tiles", "part_tiles", "taps"])
def _tap_sums(
    grad_ptr,
    source_ptr,
    partial_ptr,
    lengths_ptr,
    offsets_ptr,
    utterances,
    steps,
    frames,
    row_count,
    tiles,
    part_tiles,
    taps,
    width,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A chunk of taps over one part of the tiles; the program of the first chunk adds up the bias as well."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    tap = tl.program_id(1) * TAPS
    first_tile = tl.program_id(2) * part_tiles
    bias = tl.zeros((COLUMNS,), tl.float32)
    sums = _repeat(bias, TAPS)
    for tile in range(first_tile, min(first_tile + part_tiles, tiles)):
        begin, end, _, first = tile_rows(tile, lengths_ptr, offsets_ptr, utterances, steps, frames, row_count, ROWS)
        grads = _load_rows(grad_ptr, width, first, begin, end, columns, inside, ROWS)
        rows = _load_rows(source_ptr, width, first - taps // 2 + tap, begin, end, columns, inside, ROWS + TAPS - 1)
        bias += _sum(grads, 0, ROWS)
        added: tl.tuple = ()
        for j in tl.static_range(TAPS):
            total = sums[j]
            for r in tl.static_range(ROWS):
                total = tl.fma(rows[r + j], grads[r], total)
            added += (total,)
        sums = added
    out = partial_ptr + tl.program_id(2).to(tl.int64) * (taps + 1) * width + columns
    for j in tl.static_range(TAPS):
        tl.store(out + (tap + j) * width, sums[j], inside & (tap + j < taps))
    if tap == 0:
        tl.store(out + taps * width, bias, inside)
