"""The dropout mask of dmao_kernels/ops/_philox.py, bit for bit, as Triton device functions.

`keep` costs one call of Philox4x32-7 an element. `keep_tile` calls it once for the eight elements that share its
output: those 16 columns apart within 128. In a kernel that reads, drops and writes that leaves 5 of 22 multiplications
an element (IMAD on sm_90); a quarter of a byte an element then goes through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.random import philox_impl

_ROUNDS = tl.constexpr(7)


def threshold_of(p: float) -> int:
    """What the 16 bits of an element must reach for it to be kept; pass it with `do_not_specialize`."""
    return round(p * 2**16)


@triton.jit
def load_seed(seed_ptr):
    """Both words of the seed, an int64 [1] tensor: (seed_low, seed_high)."""
    seed = tl.load(seed_ptr)
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32)


@triton.jit
def _word(value):
    return tl.cast(value, tl.uint32)


@triton.jit
def keep(seed_low, seed_high, row, column, threshold, s0=0, s1=0):
    """Whether dropout keeps each element: row and column, int tensors, and the streams s0, s1 broadcast."""
    column = _word(column)
    first = column // 128 * 16 + column % 16
    w0, w1, w2, w3 = philox_impl(first, _word(row), _word(s0), _word(s1), seed_low, seed_high, _ROUNDS)
    part = column // 16 % 8
    even = tl.where(part % 4 < 2, w0, w2)
    odd = tl.where(part % 4 < 2, w1, w3)
    word = tl.where(part % 2 == 0, even, odd)
    return ((word >> (part // 4 * 16)) & 0xFFFF) >= threshold


@triton.jit
def _kept_halves(word, threshold, place: tl.constexpr):
    """Bit `place` from the low half of each word, bit place + 4 from the high one."""
    low = ((word & 0xFFFF) >= threshold).to(tl.int32) << place
    return low | (((word >> 16) >= threshold).to(tl.int32) << (place + 4))


@triton.jit
def keep_bits(seed_low, seed_high, row, first, threshold, s0=0, s1=0):
    """`keep` of eight elements at a time, in the low bits of an int32; all int tensors broadcast.

    Bit i belongs to column first // 16 * 128 + i * 16 + first % 16.
    """
    w0, w1, w2, w3 = philox_impl(_word(first), _word(row), _word(s0), _word(s1), seed_low, seed_high, _ROUNDS)
    bits = _kept_halves(w0, threshold, 0) | _kept_halves(w1, threshold, 1)
    return bits | _kept_halves(w2, threshold, 2) | _kept_halves(w3, threshold, 3)


@triton.jit
def keep_tile(seed_low, seed_high, rows, first_column, COLUMNS: tl.constexpr, threshold, s0=0, s1=0):
    """`keep` of rows [R] x the neighbouring columns first_column ... first_column + COLUMNS - 1: bool [R, COLUMNS].

    COLUMNS is a power of two from 16 on, and the scalar first_column a multiple of min(COLUMNS, 128). s0 and s1
    are scalars, or [R, 1, 1].
    """
    BLOCKS: tl.constexpr = max(COLUMNS // 128, 1)
    PARTS: tl.constexpr = min(COLUMNS // 16, 8)
    tl.static_assert(BLOCKS * PARTS * 16 == COLUMNS)
    block = tl.arange(0, BLOCKS)[None, :, None]
    lane = tl.arange(0, 16)[None, None, :]
    first = first_column // 128 * 16 + block * 16 + lane
    bits = keep_bits(seed_low, seed_high, rows[:, None, None], first, threshold, s0, s1)
    if PARTS < 8:
        bits >>= first_column // 16 % 8
    if PARTS == 1:
        kept = bits & 1 != 0
    else:
        # As bytes from here on: the layout changes behind this, and so little has to move. The compiler does not see
        # through the join, or it would rather draw the numbers anew for every element than move bits.
        pair = tl.join(bits.to(tl.int8), (bits >> (PARTS // 2)).to(tl.int8)).permute(0, 1, 3, 2)
        part = (1 << tl.arange(0, PARTS // 2)).to(tl.int8)[None, None, None, :, None]
        kept = tl.expand_dims(pair, 3) & part != 0
    return kept.reshape(rows.shape[0], COLUMNS)
