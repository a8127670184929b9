"""Pieces of a sharded parameter: together they are the whole, and each knows its components."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmao_kernels.structure.shards import pieces


@given(
    triple=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    cuts=st.tuples(st.integers(0, 120), st.integers(0, 120)),
)
def test_pieces_are_the_range(triple: tuple[int, int, int], cuts: tuple[int, int]) -> None:
    size = triple[0] * triple[1] * triple[2]
    start, stop = sorted(min(cut, size) for cut in cuts)
    of_component = torch.arange(triple[1]).repeat_interleave(triple[2]).repeat(triple[0])
    found, position = [], 0
    for piece in pieces(triple, start, stop):
        assert piece.start == position
        position += piece.entries
        inside = torch.arange(piece.first, piece.first + piece.components)
        found.append(inside.repeat_interleave(piece.run).repeat(piece.repeats))
    assert position == stop - start
    assert len(found) <= 7
    if found:
        torch.testing.assert_close(torch.cat(found), of_component[start:stop])


@pytest.mark.parametrize("triple", [(1, 4, 6), (2, 4, 3), (5, 4, 1)])
def test_the_whole_is_one_piece(triple: tuple[int, int, int]) -> None:
    (piece,) = pieces(triple, 0, 24 if triple[0] < 5 else 20)
    assert (piece.repeats, piece.components, piece.run, piece.first) == (*triple, 0)
