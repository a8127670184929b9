"""The dropout mask in Triton is that of dmao_kernels/ops/_philox.py, bit for bit."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from dmao_kernels.ops._philox import kept
from dmao_kernels.ops._triton.philox import keep, keep_tile, load_seed, threshold_of

ROWS = 16


@triton.jit(do_not_specialize=["threshold", "first_row", "first_column", "s0", "s1"])
def mask(
    seed_ptr, out_ptr, threshold, first_row, first_column, s0, s1, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    seed_low, seed_high = load_seed(seed_ptr)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    if TILE:
        kept = keep_tile(seed_low, seed_high, first_row + row, first_column, COLUMNS, threshold, s0, s1)
    else:
        rows, columns = (first_row + row)[:, None], (first_column + column)[None, :]
        kept = keep(seed_low, seed_high, rows, columns, threshold, s0, s1)
    tl.store(out_ptr + row[:, None] * COLUMNS + column[None, :], kept.to(tl.int8))


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize(
    ("first_column", "columns"),
    [(48, 16), (96, 32), (0, 64), (64, 64), (192, 64), (128, 128), (0, 128), (0, 256), (512, 512)],
)
@pytest.mark.parametrize(
    ("seed", "p", "first_row", "s0", "s1"),
    [
        (0, 0.5, 0, 0, 0),
        (-5, 0.1, 7, 3, 9),
        (2**62 + 12345678912, 0.999, 2**31 - 20, 2**31 - 1, 1),
        (-(2**63), 0.0, 1000, 0, 2),
        (77, 1 - 2**-17, 3, 0, 0),
    ],
)
def test_mask(
    device: str, seed: int, p: float, first_row: int, s0: int, s1: int, first_column: int, columns: int, tile: bool
) -> None:
    seeds = torch.tensor([seed], device=device)
    ours = torch.empty((ROWS, columns), dtype=torch.int8, device=device)
    mask[(1,)](seeds, ours, threshold_of(p), first_row, first_column, s0, s1, ROWS, columns, tile)
    row, column = torch.arange(first_row, first_row + ROWS), torch.arange(first_column, first_column + columns)
    streams = torch.tensor(s0), torch.tensor(s1)
    expected = kept(torch.tensor([seed]), row[:, None], column[None, :], p, *streams)
    assert torch.equal(ours.bool().cpu(), expected)
