"""BlockMask: both compressed forms of a grid, and what it refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dmao_kernels import BlockMask


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (3, 5), (24, 6)])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("static", [False, True])
def test_both_forms_are_the_grid(shape: tuple[int, int], density: float, static: bool) -> None:
    grid = torch.rand(shape) < density
    mask = BlockMask.from_dense(grid, 32, static=static)
    assert torch.equal(mask.to_dense(), grid)
    assert torch.equal(mask.transpose().to_dense(), grid.t())
    assert torch.equal(mask.transpose().transpose().to_dense(), grid)
    assert mask.count == (grid.numel() if static else grid.sum())
    assert static or mask.density == pytest.approx(grid.float().mean().item() if grid.numel() else 1.0)
    for ids, offsets in ((mask.column_ids, mask.row_offsets), (mask.row_ids, mask.column_offsets)):
        assert ids.dtype == offsets.dtype == torch.int32
        assert all((ids[a:b].diff() > 0).all() for a, b in pairwise(offsets.tolist()))


def test_full_covers_partial_blocks() -> None:
    mask = BlockMask.full(torch.zeros(65, 96), 32)
    assert (mask.rows, mask.columns, mask.count, mask.density) == (3, 3, 9, 1.0)
    assert mask.elements(65, 96).all()
    assert mask.elements(65, 96).shape == (65, 96)


def test_elements() -> None:
    mask = BlockMask.from_dense(torch.tensor([[True, False], [False, True]]), 16)
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[:16, :16] = True
    expected[16:, 16:] = True
    assert torch.equal(mask.elements(20, 30), expected)


def test_moves() -> None:
    mask = BlockMask.full(torch.zeros(32, 32), 16).to("meta")
    assert mask.device.type == mask.row_offsets.device.type == "meta"


def test_refuses() -> None:
    grid = torch.ones(2, 3, dtype=torch.bool)
    for block in (0, 8, 24, 144):
        with pytest.raises(ValueError, match=rf"block must be a multiple of 16 in \[16, 128\], got {block}"):
            BlockMask.from_dense(grid, block)
    with pytest.raises(ValueError, match=r"grid must be bool \[rows, columns\], got torch.float32 \[2, 3\]"):
        BlockMask.from_dense(grid.float(), 16)
    with pytest.raises(ValueError, match=r"the matrix must have two dimensions, got \[3\]"):
        BlockMask.full(torch.zeros(3), 16)
    mask = BlockMask.from_dense(grid, 16)
    tensors = (mask.row_offsets, mask.column_ids, mask.column_offsets, mask.row_ids)
    with pytest.raises(ValueError, match=r"row_offsets must be int32 \[4\], got torch.int32 \[3\]"):
        BlockMask(16, 3, 3, *tensors)
    with pytest.raises(ValueError, match=r"row_ids must be int32 \[6\], got torch.int64 \[6\]"):
        BlockMask(16, 2, 3, *tensors[:3], mask.row_ids.long())
    strided = torch.zeros(6, 2, dtype=torch.int32)[:, 0]
    with pytest.raises(ValueError, match=r"row_ids must be contiguous, got strides \(2,\)"):
        BlockMask(16, 2, 3, *tensors[:3], strided)
    with pytest.raises(ValueError, match="row_ids must be on cpu, got meta"):
        BlockMask(16, 2, 3, *tensors[:3], mask.row_ids.to("meta"))
