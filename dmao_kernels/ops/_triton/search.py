"""Where in the offsets of packed utterances something lies: binary searches, a few dependent loads each."""

from __future__ import annotations

import triton
import triton.language as tl


def search_steps(utterances: int) -> int:
    """`steps` of the searches below: halvings after which one utterance is left."""
    return max(utterances - 1, 0).bit_length()


@triton.jit
def find_utterance(offsets_ptr, utterances, steps, row):
    """The utterance, at least 0, of each packed row: the last one that does not begin behind it."""
    found = row * 0
    for step in range(steps):
        candidate = found + (1 << (steps - 1 - step))
        begin = tl.load(offsets_ptr + candidate, candidate < utterances, 2147483647)
        found = tl.where(begin <= row, candidate, found)
    return found


@triton.jit
def find_tile(offsets_ptr, utterances, steps, row_count, tile, TILE: tl.constexpr):
    """Of tile number `tile`: the packed rows [begin, end) of its utterance, and its own first row, maybe past the end.

    Utterance u takes the numbers from offsets[u] // TILE + u on, which are enough for its rows, so that finding the
    utterance of a number needs no sums over those before. There are row_count // TILE + utterances numbers.
    """
    found = tile * 0
    for step in range(steps):
        candidate = found + (1 << (steps - 1 - step))
        begin = tl.load(offsets_ptr + candidate, candidate < utterances, 2147483647)
        found = tl.where((candidate < utterances) & (begin // TILE + candidate <= tile), candidate, found)
    begin = tl.maximum(tl.load(offsets_ptr + found), 0)
    end = tl.minimum(tl.load(offsets_ptr + found + 1), row_count)
    return begin, end, begin + (tile - begin // TILE - found) * TILE
