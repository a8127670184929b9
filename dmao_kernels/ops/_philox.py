"""The dropout mask in plain PyTorch: Philox4x32-10, bit for bit what csrc/include/dmao/philox.h computes.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four output words for a counter of four words and a key of two, all int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 wraps: the low 64 bits, and so both words of the product, are exact.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32 & _WORD) ^ c1 ^ k0
        c2 = (product0 >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = product1 & _WORD, product0 & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def keep_mask(seed: Tensor, tokens: int, units: Tensor, p: float) -> Tensor:
    """Which hidden units of which tokens dropout keeps.

    Unit j of token r draws word (j // 16) % 4 of counter ((j // 64) * 16 + j % 16, r, 0, 0) with the seed as
    key, and is kept iff that word is at least round(p * 2^32).

    Args:
        seed: int64 [1].
        tokens: number of tokens.
        units: int64 [n], indices j of hidden units.
        p: probability of dropping, in [0, 1).

    Returns:
        bool [tokens, n].
    """
    rows = torch.arange(tokens, device=units.device)[:, None]
    first = (units // 64 * 16 + units % 16)[None, :]
    first, rows = torch.broadcast_tensors(first, rows)
    zero = torch.zeros_like(first)
    words = torch.stack(philox4x32((first, rows, zero, zero), (seed & _WORD, seed >> 32 & _WORD)))
    word = words.gather(0, (units // 16 % 4).expand(1, tokens, -1))[0]
    return word >= min(round(p * 2**32), _WORD)
