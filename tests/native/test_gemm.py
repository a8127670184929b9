"""cpu/gemm.h and cpu/operands.h, compiled for each instruction set that this machine has, against float64."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch
from torch import Tensor

from dmao_kernels.testing import Poison

# (m, n, depth): one of each; both sides of rows (6, 8), vectors (4, 8, 16), panels (8, 16, 48), pairs of k, and
# spans (256).
SIZES = [(0, 3, 2), (1, 1, 1), (3, 17, 2), (8, 48, 16), (9, 49, 33), (7, 16, 31), (13, 100, 257), (64, 96, 256)]
SIZES += [(5, 7, 0), (17, 33, 515), (25, 130, 64)]

PROBE = "gemm"
ROW, COLUMN, STRIPS = range(3)  # Order


def product(
    probe: ctypes.CDLL,
    a: Tensor,
    b: Tensor,
    orders: tuple[int, bool],
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """1 + A B from poisoned memory, where A = a^T in order COLUMN, B = b^T if orders[1], b taken at rows and columns.

    With `start`, that row + A B, into NaN.
    """
    poison = Poison()
    selected = b if rows is None else b[rows.long()]
    selected = selected if columns is None else selected[:, columns.long()]
    m, depth = a.shape[::-1] if orders[0] == COLUMN else a.shape
    n = selected.shape[0] if orders[1] else selected.shape[1]
    left, right = poison.around(a), poison.around(b)
    # Whole vectors (of at most 16) and pairs.
    packed_a = poison.around(torch.full(((m + 16) * (depth + 1),), torch.nan))
    packed_b = poison.around(torch.full(((n + 16) * (depth + 1),), torch.nan))
    c = poison.around(torch.full((m, n), 1.0 if start is None else torch.nan))
    padded = None if start is None else torch.cat([start, torch.full((16,), torch.nan)])
    arguments = [*orders, *map(ctypes.c_int64, (m, n, depth)), left, ctypes.c_int64(a.shape[1])]
    arguments += [right, ctypes.c_int64(b.shape[1]), rows, columns, packed_a, packed_b, c, ctypes.c_int64(n), padded]
    name = f"product_{str(a.dtype).removeprefix('torch.')}"
    getattr(probe, name)(*(ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments))
    poison.check()
    a = a.T if orders[0] == COLUMN else a
    exact = a.double() @ (selected.double().T if orders[1] else selected.double())
    expected = (1 if start is None else start.double()) + exact
    torch.testing.assert_close(c.double(), expected, rtol=0, atol=3e-7 * (depth + 3))
    return c


@pytest.mark.parametrize("orders", [*itertools.product((ROW, COLUMN, STRIPS), (False, True))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products(probe: ctypes.CDLL, size: tuple[int, int, int], dtype: torch.dtype, orders: tuple[int, bool]) -> None:
    m, n, depth = size
    a, b = torch.randn(m, depth).to(dtype), torch.randn(depth, n).to(dtype)
    a, b = a.T.contiguous() if orders[0] == COLUMN else a, b.T.contiguous() if orders[1] else b
    product(probe, a, b, orders)
    product(probe, a, b, orders, start=torch.randn(n))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selected_rows_and_columns(probe: ctypes.CDLL, dtype: torch.dtype, transposed: bool) -> None:
    """Scattered ones and runs; what is not selected is NaN."""
    rows = torch.cat([torch.arange(0, 40, 3), torch.arange(41, 80)]).int()
    columns = torch.cat([torch.arange(5, 60), torch.tensor([61, 64, 65, 80])]).int()
    a = torch.randn(11, len(columns) if transposed else len(rows)).to(dtype)
    b = torch.full((85, 81), torch.nan)
    b[rows.long()[:, None], columns.long()] = torch.randn(len(rows), len(columns))
    product(probe, a, b.to(dtype), (ROW, transposed), rows, columns)


def test_rows_do_not_depend_on_each_other(probe: ctypes.CDLL) -> None:
    """A row of C has the same bits whatever the number of rows, and in strips as well."""
    a, b = torch.randn(29, 300), torch.randn(300, 50)
    whole = product(probe, a, b, (ROW, False))
    for order in (ROW, STRIPS):
        assert all(torch.equal(product(probe, a[:m], b, (order, False)), whole[:m]) for m in (1, 6, 13, 28))
