"""BlockMask: which blocks of a matrix live, as tensors that kernels can walk by rows and by columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SIZES = tuple(range(16, 129, 16))


@dataclass(frozen=True, eq=False)
class BlockMask:
    """The live blocks of a matrix that is cut into square blocks: a grid of booleans in CSR and in CSC form.

    The grid has `rows` x `columns` blocks of `block` x `block` elements; the last block row and column may
    stick out of the matrix. Everything that changes from mask to mask is a tensor, so that a compiled graph
    serves all masks over one matrix. `from_dense` and `full` build one.

    block: edge of a block, in elements: 16, 32, ..., 128.
    rows, columns: size of the grid, in blocks.
    row_offsets: int32 [rows + 1]; the live blocks of row r are column_ids[row_offsets[r]:row_offsets[r + 1]].
    column_ids: int32 [n], ascending within a row; behind the last row anything may follow.
    column_offsets: int32 [columns + 1], likewise into row_ids.
    row_ids: int32 [n], ascending within a column.

    Raises ValueError where dtypes, shapes or devices do not fit together. The values are not read here (that
    would wait for the device); kernels on the CPU check them.
    """

    block: int
    rows: int
    columns: int
    row_offsets: Tensor
    column_ids: Tensor
    column_offsets: Tensor
    row_ids: Tensor

    def __post_init__(self) -> None:
        _check_block(self.block)
        count = self.column_ids.shape[0] if self.column_ids.dim() == 1 else -1
        lengths = {
            "row_offsets": self.rows + 1,
            "column_ids": count,
            "column_offsets": self.columns + 1,
            "row_ids": count,
        }
        for name, length in lengths.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or list(tensor.shape) != [length]:
                expected = "n" if length < 0 else length
                raise ValueError(
                    f"BlockMask: {name} must be int32 [{expected}], got {tensor.dtype} {list(tensor.shape)}"
                )
            if tensor.device != self.column_ids.device:
                raise ValueError(f"BlockMask: {name} must be on {self.column_ids.device}, got {tensor.device}")
            if not tensor.is_contiguous():  # kernels read them by their address
                raise ValueError(f"BlockMask: {name} must be contiguous, got strides {tensor.stride()}")

    @classmethod
    def from_dense(cls, grid: Tensor, block: int, *, static: bool = False) -> BlockMask:
        """The mask of a grid: bool [rows, columns], True where a block lives.

        static: ids as many as the grid has blocks, whatever lives: shapes that never change, made without waiting for
            the device (for masked_linear; block_attention does not take it).

        Raises:
            ValueError: grid is not such a tensor, or block not a multiple of 16 in [16, 128].
        """
        _check_block(block)
        if grid.dtype != torch.bool or grid.dim() != 2:
            raise ValueError(f"BlockMask: grid must be bool [rows, columns], got {grid.dtype} {list(grid.shape)}")
        compress = _compress_static if static else _compress
        row_offsets, column_ids = compress(grid)
        column_offsets, row_ids = compress(grid.t())
        return cls(block, grid.shape[0], grid.shape[1], row_offsets, column_ids, column_offsets, row_ids)

    @classmethod
    def full(cls, matrix: Tensor, block: int) -> BlockMask:
        """The mask over a matrix, on its device, of which all blocks live."""
        rows, columns = grid_shape(matrix, block)
        return cls.from_dense(torch.ones(rows, columns, dtype=torch.bool, device=matrix.device), block)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.column_ids.device

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """row_offsets, column_ids, column_offsets, row_ids."""
        return self.row_offsets, self.column_ids, self.column_offsets, self.row_ids

    @property
    def count(self) -> int:
        """The number of ids: of live blocks, where the mask is not static."""
        return self.column_ids.shape[0]

    @property
    def density(self) -> float:
        """The share of blocks that live; 1 for an empty grid, and where the mask is static."""
        return self.count / (self.rows * self.columns) if self.rows * self.columns else 1.0

    def to_dense(self) -> Tensor:
        """The grid: bool [rows, columns]. Differentiable code and torch.compile may use it."""
        blocks = torch.arange(self.count, dtype=torch.int32, device=self.device)
        row_of_block = torch.searchsorted(self.row_offsets, blocks, right=True) - 1
        # What fills the ids up stands in a row behind the last.
        grid = torch.zeros((self.rows + 1) * self.columns, dtype=torch.bool, device=self.device)
        live = torch.ones_like(blocks, dtype=torch.bool)
        grid = grid.scatter(0, row_of_block * self.columns + self.column_ids, live)
        return grid[: self.rows * self.columns].view(self.rows, self.columns)

    def elements(self, rows: int, columns: int) -> Tensor:
        """bool [rows, columns]: which elements of a matrix of that size live."""
        grid = self.to_dense().repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)
        return grid[:rows, :columns]

    def transpose(self) -> BlockMask:
        """The mask of the transposed matrix; shares the tensors."""
        return BlockMask(
            self.block,
            self.columns,
            self.rows,
            self.column_offsets,
            self.row_ids,
            self.row_offsets,
            self.column_ids,
        )

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask with its tensors on another device."""
        return BlockMask(self.block, self.rows, self.columns, *(tensor.to(device) for tensor in self.tensors))


def plain_bools(mask: Tensor) -> Tensor:
    """A bool tensor from a file, each value as 0 or 1: other bytes would count as more than one in sums, and the lists
    made of them would not fit together.
    """
    return mask.contiguous().view(torch.uint8) != 0


def check_block_mask(op: str, name: str, mask: BlockMask | None) -> None:
    """Raises TypeError unless it is one, or None: a dense mask of booleans has another meaning."""
    if mask is not None and not isinstance(mask, BlockMask):
        raise TypeError(
            f"{op}: {name} must be a BlockMask (BlockMask.from_dense makes one), got a {type(mask).__name__}"
        )


def mask_arguments(mask: BlockMask | None) -> tuple[Any, ...]:
    """A mask as operators take it: its tensors, all of them or none, and its block size, 0 without a mask."""
    return (None, None, None, None, 0) if mask is None else (*mask.tensors, mask.block)


def grid_shape(matrix: Tensor, block: int) -> tuple[int, int]:
    """The size in blocks, (rows, columns), of a grid over a matrix.

    Raises:
        ValueError: matrix has not two dimensions, or block is not a multiple of 16 in [16, 128].
    """
    _check_block(block)
    if matrix.dim() != 2:
        raise ValueError(f"BlockMask: the matrix must have two dimensions, got {list(matrix.shape)}")
    return -(-matrix.shape[0] // block), -(-matrix.shape[1] // block)


def _check_block(block: int) -> None:
    if block not in BLOCK_SIZES:
        raise ValueError(f"BlockMask: block must be a multiple of 16 in [16, 128], got {block}")


def _compress(grid: Tensor) -> tuple[Tensor, Tensor]:
    offsets = torch.zeros(grid.shape[0] + 1, dtype=torch.int32, device=grid.device)
    offsets[1:] = grid.sum(1).cumsum(0)
    return offsets, grid.nonzero()[:, 1].to(torch.int32).contiguous()


def _compress_static(grid: Tensor) -> tuple[Tensor, Tensor]:
    offsets = F.pad(grid.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    # The live blocks in order, then the others, which fill up.
    order = grid.flatten().logical_not().to(torch.uint8).argsort(stable=True)
    return offsets, (order % max(grid.shape[1], 1)).to(torch.int32)
