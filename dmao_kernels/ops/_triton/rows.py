"""Launches of kernels whose programs hold whole rows, with one reduction over them or more."""

from __future__ import annotations

import torch

from dmao_kernels.ops._triton.config import architecture, cdiv, power_of_2

NORM_TILE = 512  # elements that a program holds per array, at least: one warp, which waits for no other
NORM_BACKWARD_TILE = 2048  # where programs add up many tiles: fewer of them, with more to wait for at once
_PARTS = 512  # programs that share the rows then, at most; each leaves one row of sums
_PART_TILES = 4  # tiles of rows that such a program has at least: its sums cost as much traffic as a tile's rows


def columns_of(width: int) -> int:
    """A power of two that holds the width, and that `keep_tile` takes."""
    return max(64, power_of_2(width))


def row_tile(width: int, tile: int, device: torch.device) -> tuple[int, int, int]:
    """Rows and columns of a tile of at least `tile` elements, and warps: 16 elements a thread, as far as that goes."""
    columns = columns_of(width)
    rows = max(1, tile // columns)
    most = 32 if isinstance(architecture(device), int) else 16  # 1,024 threads; AMD's warps have 64
    return rows, columns, min(most, rows * columns // 512)


def row_parts(rows: int, tile_rows: int) -> tuple[int, int]:
    """How many programs share the tiles of rows, and how many of them each has. It depends on no device."""
    tiles = cdiv(rows, tile_rows)
    part_tiles = max(_PART_TILES, cdiv(tiles, _PARTS))
    return cdiv(tiles, part_tiles), part_tiles
