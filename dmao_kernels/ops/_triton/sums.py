"""The second pass of sums over rows: what the programs of the first left, added up in a fixed order."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.config import cdiv
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.live import Channels, channels_of

_COLUMNS = 64


def add_parts(partial: Tensor, first: Tensor | None, last: Tensor | None, channels: Channels | None = None) -> None:
    """first[channel, i] = sum of partial[:, i, place], and last[channel] that of the row behind them.

    Args:
        partial: float32 [parts, n + 1, places].
        first: [stored, n], or [stored] with n = 1, or None.
        last: [stored], or None.
        channels: which channel a place is; None: the same.
    """
    parts, rows, places = partial.shape
    channels = Channels(places) if channels is None else channels
    grid = (cdiv(places, _COLUMNS), rows)
    _add_parts[grid](partial, first, last, parts, rows, *channels.arguments, COLUMNS=_COLUMNS)


@kernel(varying=["parts", "rows", "components"])
def _add_parts(
    partial_ptr,
    first_ptr,
    last_ptr,
    parts,
    rows,
    live_ptr,
    places,
    components,
    width,
    ALIGN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Every 32nd part is added to one of 32 sums, and these at the end."""
    place = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1)
    pointers = partial_ptr + row * places + place[None, :]
    total = tl.zeros((32, COLUMNS), tl.float32)
    for begin in range(0, parts, 32):
        part = begin + tl.arange(0, 32)[:, None]
        total += tl.load(pointers + part.to(tl.int64) * rows * places, (part < parts) & (place < places)[None, :], 0.0)
    total = tl.sum(total, 0)
    channel, _, inside = channels_of(live_ptr, place, places, components, width, ALIGN)
    if first_ptr is not None:
        pointers = first_ptr + channel * (rows - 1) + row
        tl.store(pointers, total.to(first_ptr.dtype.element_ty), inside & (row < rows - 1))
    if last_ptr is not None:
        tl.store(last_ptr + channel, total.to(last_ptr.dtype.element_ty), inside & (row == rows - 1))
