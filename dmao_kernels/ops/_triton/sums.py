"""The second pass of sums over rows: what the programs of the first left, added up in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

_AT_ONCE = tl.constexpr(32)


@triton.jit
def sum_parts(pointers, stride, parts, mask, COLUMNS: tl.constexpr):
    """The sum over i < parts of what stands at `pointers + i * stride`: float32 [COLUMNS].

    Every 32nd part is added to one of 32 sums, and these at the end, so the order is that of no number of threads.
    """
    total = tl.zeros((_AT_ONCE, COLUMNS), tl.float32)
    for first in range(0, parts, _AT_ONCE):
        part = first + tl.arange(0, _AT_ONCE)
        place = pointers[None, :] + part[:, None].to(tl.int64) * stride
        total += tl.load(place, (part[:, None] < parts) & mask[None, :], 0.0)
    return tl.sum(total, 0)
