"""importance_ in Triton: one launch over all tensors, through tables of their addresses, and one over the components.

Floor: one read of the weights and one of the gradients (one of both for |g| and |w|) at memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.pieces import (
    COLUMNS,
    ROWS,
    Pieces,
    address,
    options_on,
    owner_of_piece,
    place_of_piece,
    store_sums,
    tile_of_piece,
)
from dmao_kernels.ops._triton.scored import DTYPES, Sums, terms_of
from dmao_kernels.ops._triton.tables import Addresses, Recent, queue
from dmao_kernels.ops.importance.reference import check_segment

_TABLE = tl.constexpr(3)


def importance_(
    ema: Tensor,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    segments: Tensor,
    inverse_count: Tensor,
    metric: str,
    beta: float,
) -> None:
    """The contract of `importance_`. Tables are made where a shape, a dtype or a segment has changed."""
    key = (
        tuple(segments.flatten().tolist()),
        tuple([(weight.numel(), weight.dtype) for weight in weights]),
        tuple([(grad.numel(), grad.dtype) for grad in grads]),
        ema.numel(),
        metric == "magnitude",
        ema.device,
        queue(ema.device),
    )
    tables = _RECENT.get(key, lambda: _Tables(segments, weights, grads, ema, metric))
    sums = torch.empty(tables.sums.count, dtype=torch.float32, device=ema.device)
    for launch in tables.launches:
        launch.run(weights, grads, sums, metric)
    tables.sums.average_(ema, sums, inverse_count, beta)


class _Launch:
    """The pieces of all tensors of the same dtypes."""

    def __init__(self, sums: Sums, of: Sequence[int], dtypes: tuple[torch.dtype, torch.dtype], device: torch.device):
        scored = [sums.scored[i] for i in of]
        self._tensors = [s.tensor for s in scored]
        self._dtypes = [DTYPES[dtype] for dtype in dtypes]
        self._pieces = Pieces([s.cut for s in scored], [s.sums for s in scored], device)
        self._addresses = Addresses([s.cut.even for s in scored], device)

    def run(self, weights: Sequence[Tensor], grads: Sequence[Tensor], sums: Tensor, metric: str) -> None:
        pieces = self._pieces
        table = self._addresses.table(
            [weights[i].data_ptr() for i in self._tensors], [grads[i].data_ptr() for i in self._tensors]
        )
        importance_kernel[(pieces.count,)](
            pieces.owners, pieces.shapes, table, sums, *self._dtypes, metric, **options_on(sums.device)
        )


class _Tables:
    """All that one call needs to know about shapes."""

    def __init__(
        self, segments: Tensor, weights: Sequence[Tensor], grads: Sequence[Tensor], ema: Tensor, metric: str
    ) -> None:
        rows = segments.tolist()
        for i, row in enumerate(rows):
            check_segment(i, row, weights, ema.numel())
        scored = [row for row in rows if weights[row[0]].numel() and (grads[row[0]].numel() or metric == "magnitude")]
        self.sums = Sums(scored, ema.numel(), ema.device)
        of: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
        for i, row in enumerate(scored):
            of.setdefault((weights[row[0]].dtype, grads[row[0]].dtype), []).append(i)
        self.launches = [_Launch(self.sums, chosen, dtypes, ema.device) for dtypes, chosen in of.items()]


_RECENT: Recent[_Tables] = Recent()


@kernel()
def importance_kernel(owners, shapes, table, sums, WEIGHT: tl.constexpr, GRAD: tl.constexpr, METRIC: tl.constexpr):
    """One piece of one tensor."""
    owner = owner_of_piece(owners)
    if tl.load(table + owner * _TABLE + 2) != 0:
        _score(shapes, owner, table, sums, WEIGHT, GRAD, METRIC, True)
    else:
        _score(shapes, owner, table, sums, WEIGHT, GRAD, METRIC, False)


@triton.jit
def _score(
    shapes, owner, table, sums, WEIGHT: tl.constexpr, GRAD: tl.constexpr, METRIC: tl.constexpr, EVEN: tl.constexpr
):
    _, first, rest, rows, stride, columns, place, single = place_of_piece(shapes, owner)
    weights = address(table, owner * _TABLE, WEIGHT, EVEN)
    grads = address(table, owner * _TABLE + 1, GRAD, EVEN)
    terms = tl.zeros([ROWS, COLUMNS], tl.float32)
    for row in range(0, rows, ROWS):
        at, there = tile_of_piece(first, rest, stride, columns, row, EVEN)
        weight, grad = terms, terms  # one of them is not read where the metric does without
        if METRIC != "gradient":
            weight = tl.load(weights + at, mask=there, other=0.0).to(tl.float32)
        if METRIC != "magnitude":
            grad = tl.load(grads + at, mask=there, other=0.0).to(tl.float32)
        terms += terms_of(weight, grad, METRIC)
    store_sums(sums, place, terms, columns, single)
