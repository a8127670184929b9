"""The dropout mask in plain PyTorch: Philox4x32-7, bit for bit what csrc/include/dmao/philox.h computes.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 7


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four output words for a counter of four words and a key of two, all int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 wraps: the low 64 bits, and so both words of the product, are exact.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32 & _WORD) ^ c1 ^ k0
        c2 = (product0 >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = product1 & _WORD, product0 & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def kept(
    seed: Tensor, row: Tensor, column: Tensor, p: float, s0: Tensor | None = None, s1: Tensor | None = None
) -> Tensor:
    """Which elements dropout keeps.

    Element j of row r in stream (s0, s1) looks at 16 bits of the output of counter
    ((j // 128) * 16 + j % 16, r, s0, s1) with the seed as key: with i = (j // 16) % 8, those are half i // 4
    (0 the low one, 1 the high one) of word i % 4. It is kept iff they are at least round(p * 2^16).

    Args:
        seed: int64 [1].
        row: int64, broadcastable with the others.
        column: int64, j above.
        p: probability of dropping, in [0, 1).
        s0, s1: int64, in [0, 2^32); None: 0.

    Returns:
        bool, of the shape that row, column, s0 and s1 broadcast to.
    """
    zero = torch.zeros_like(column)
    row, column, s0, s1 = torch.broadcast_tensors(row, column, zero if s0 is None else s0, zero if s1 is None else s1)
    first = column // 128 * 16 + column % 16
    words = torch.stack(philox4x32((first, row, s0, s1), (seed & _WORD, seed >> 32 & _WORD)))
    part = column // 16 % 8
    word = words.gather(0, (part % 4)[None])[0]
    return (word >> part // 4 * 16 & 0xFFFF) >= round(p * 2**16)


def keep_mask(seed: Tensor, rows: int, columns: Tensor, p: float) -> Tensor:
    """`kept` of the given columns (int64 [n]) of rows 0 ... rows - 1 in stream (0, 0), as bool [rows, n]."""
    return kept(seed, torch.arange(rows, device=columns.device)[:, None], columns[None, :], p)
