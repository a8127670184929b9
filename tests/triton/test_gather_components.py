"""gather_components in Triton: old, given and remaining components, to the bit, all in one launch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmao_kernels import gather_components
from tests.ops.test_gather_components import by_hand, problem, same_bits
from tests.triton.test_importance import FLOATS, surrounded

# (repeats, components, given, run): long runs and columns, whole and broken vectors, around a tile and a piece.
SHAPES = [
    (1, 1, 1, 1),
    (3, 5, 2, 7),
    (2, 4, 3, 256),
    (2, 4, 1, 257),
    (7, 2, 2, 264),
    (8, 3, 2, 32),
    (33, 3, 2, 33),
    (1, 3, 2, 8200),
    (0, 3, 2, 5),
    (3, 2, 2, 0),
]


def run(device: str, *problems: list[Any]) -> list[Tensor]:
    tensors, index, given = map(list, zip(*problems, strict=True))
    moved = [None if values is None else values.to(device) for values in given]
    found = gather_components([x.to(device) for x in tensors], index, moved)
    assert all(new.is_contiguous() for new in found)
    return [new.cpu() for new in found]


@pytest.mark.parametrize("dtype", FLOATS)
def test_by_hand(dtype: torch.dtype, device: str) -> None:
    problems = [problem(shape, dtype) for shape in SHAPES]
    for found, each in zip(run(device, *problems), problems, strict=True):
        assert same_bits(found, by_hand(*each)), list(each[0].shape)


def test_mixed_dtypes_and_one_index_for_many(device: str) -> None:
    problems = [problem((2, 4, 3, 300), dtype) for dtype in FLOATS] + [problem((9, 4, 3, 5), FLOATS[0])]
    for each in problems:
        each[1] = problems[0][1]
    for found, each in zip(run(device, *problems), problems, strict=True):
        assert same_bits(found, by_hand(*each))


def test_nothing_given(device: str) -> None:
    x, index, _ = problem((3, 5, 1, 7))
    index[:, 1] = -1
    for wide in (x, torch.randn(2, 5, 300)):
        (found,) = run(device, [wide, index, None])
        assert same_bits(found, by_hand(wide, index, wide))


def test_bits_are_kept(device: str) -> None:
    """Of NaN, of negative zero and of the smallest numbers: nothing is computed with what is only moved."""
    for dtype, kind in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16), (torch.float16, torch.int16)):
        for shape in ((2, 3, 300), (9, 3, 20)):
            x = torch.randint(torch.iinfo(kind).min, torch.iinfo(kind).max, shape, dtype=kind).view(dtype)
            index = torch.tensor([[2, -1], [0, -1], [-1, 1], [1, -1]])
            (found,) = run(device, [x, index, x])
            assert torch.equal(found.view(kind), x.view(kind)[:, [2, 0, 1, 1]])


def test_nothing_around_tensors_is_read(device: str) -> None:
    problems = [problem(shape) for shape in ((3, 5, 2, 7), (2, 4, 1, 257))]
    expected = run(device, *problems)
    around = [[surrounded(x.to(device)), index, surrounded(given.to(device))] for x, index, given in problems]
    assert all(map(same_bits, run(device, *around), expected))


def test_inputs_that_vectors_cannot_read(device: str) -> None:
    x, index, given = problem((2, 4, 3, 264))
    moved = torch.empty(x.numel() + 1, device=device)[1:].view(x.shape).copy_(x)
    for each in (moved, x.to(device).transpose(0, 2).contiguous().transpose(0, 2)):
        assert same_bits(run(device, [each, index, given])[0], by_hand(x, index, given))


def test_no_tensors_and_no_components(device: str) -> None:
    assert gather_components([], []) == []
    (found,) = run(device, [torch.randn(2, 0, 5), torch.tensor([[-1, -1], [-1, 0]]), torch.ones(2, 1, 5)])
    assert torch.equal(found, torch.tensor([0.0, 1.0])[None, :, None].expand(2, 2, 5))
    (found,) = run(device, [torch.randn(2, 3, 5), torch.empty(0, 2, dtype=torch.int64), None])
    assert found.shape == (2, 0, 5)


@pytest.mark.parametrize("row", [(5, -1), (-1, 2), (-2, 0)])
def test_index_out_of_range(row: tuple[int, int], device: str) -> None:
    x, index, given = problem((3, 5, 2, 7))
    index[3] = torch.tensor(row)
    with pytest.raises(RuntimeError, match=r"index\[0\]\[3\] is .* but there are 5 components and 2 given ones"):
        run(device, [x, index, given])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_large(dtype: torch.dtype, device: str) -> None:
    problems = [problem(shape, dtype) for shape in ((1, 8, 3, 200_000), (1024, 8, 3, 256), (1024, 3000, 5, 1))]
    for found, each in zip(run(device, *problems), problems, strict=True):
        assert same_bits(found, by_hand(*each))


@pytest.mark.gpu
def test_waits_for_nothing(device: str) -> None:
    x, index, given = problem((3, 5, 2, 7))
    x, given = x.to(device), given.to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gather_components([x, x], [index, index], [given, None if (index[:, 1] < 0).all() else given])
    finally:
        torch.cuda.set_sync_debug_mode("default")
