"""adamw_importance_ in Triton: one launch over all parameters, through tables of their addresses.

Floor: w, g, m, v are read and w, m, v written once (28 bytes per float32 parameter) at memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.pieces import (
    COLUMNS,
    ROWS,
    WARPS,
    Cut,
    Pieces,
    address,
    owner_of_piece,
    place_of_piece,
    store_sums,
    tile_of_piece,
)
from dmao_kernels.ops._triton.tables import Addresses, Recent, launching_on, queue, upload
from dmao_kernels.ops.adamw_importance.reference import check_tables
from dmao_kernels.ops.importance._sums import DTYPES, Scored, Sums, terms_of
from dmao_kernels.ops.importance.reference import check_segment

_TABLE = tl.constexpr(5)
_FACTORS = tl.constexpr(8)
_NO_SUMS = -1
_ONE_STEP = torch.ones(())


def adamw_importance_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Tensor,
    group_of: Tensor,
    grad_factor: Tensor | None,
    ema: Tensor,
    segments: Tensor,
    inverse_count: Tensor,
    metric: str,
    beta: float,
) -> None:
    """The contract of `adamw_importance_`. Tables of shapes are made where a shape, a dtype or a segment has changed."""
    check_tables(segments, groups, group_of)
    rows, updated = segments.tolist(), [step.numel() != 0 for step in steps]
    key = (
        tuple(map(tuple, rows)),
        tuple((p.numel(), p.dtype, g.numel(), steps) for p, g, steps in zip(params, grads, updated, strict=True)),
        ema.numel(),
        metric == "magnitude",
        ema.device,
        queue(ema.device),
    )
    tables = _RECENT.get(key, lambda: _Tables(rows, params, grads, updated, ema, metric))
    factors = _count_steps(steps, groups, group_of, ema.device)
    sums = torch.empty(tables.sums.count, dtype=torch.float32, device=ema.device)
    with launching_on(ema.device):
        for launch in tables.launches:
            launch.run(params, grads, exp_avgs, exp_avg_sqs, factors, grad_factor, sums, metric)
        tables.sums.average_(ema, sums, inverse_count, beta)


def _count_steps(steps: Sequence[Tensor], groups: Tensor, group_of: Tensor, device: torch.device) -> Tensor:
    """Counts every parameter's step, and returns the factors of the new one [parameters, 8] on the device.

    What the device alone knows is computed there. Parameters that are only scored have some factors, too.
    """
    counted = [step for step in steps if step.numel()]
    torch._foreach_add_(counted, 1)
    where = torch.device("cpu") if all(step.is_cpu for step in counted) else device
    numbers, of = upload(groups, where), upload(group_of, where)
    done = torch.stack([(step if step.numel() else _ONE_STEP).to(where, non_blocking=True) for step in steps])
    lr, beta1, beta2, eps, weight_decay, maximize = numbers.index_select(0, of).unbind(1)
    factors = [
        1 - 2 * maximize,
        1 - beta1,
        beta2,
        1 - beta2,
        (1 - beta2**done).rsqrt(),
        eps,
        1 - lr * weight_decay,
        lr / (1 - beta1**done),
    ]
    table = torch.stack(factors, 1).float()
    return upload(table, device) if where.type == "cpu" else table


class _Launch:
    """The pieces of all parameters of one dtype."""

    def __init__(self, entries: Sequence[Scored], updated: Sequence[bool], dtype: torch.dtype, device: torch.device):
        self._entries = [(entry.tensor, updated[entry.tensor]) for entry in entries]
        self._dtype = DTYPES[dtype]
        self._pieces = Pieces([entry.cut for entry in entries], [entry.sums for entry in entries], device)
        self._params = upload(torch.tensor([entry.tensor for entry in entries], dtype=torch.int32), device)
        self._addresses = Addresses([entry.cut.even for entry in entries], device)

    def run(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        factors: Tensor,
        grad_factor: Tensor | None,
        sums: Tensor,
        metric: str,
    ) -> None:
        pieces = self._pieces
        table = self._addresses.table(
            [
                (params[i], grads[i], exp_avgs[i], exp_avg_sqs[i])
                if updated
                # Magnitudes are scored without a gradient: the kernel reads something in its place.
                else (params[i], grads[i] if grads[i].numel() else params[i], None, None)
                for i, updated in self._entries
            ]
        )
        tensors = (pieces.owners, pieces.shapes, table, self._params, factors, grad_factor, sums)
        adamw_kernel[(pieces.count,)](*tensors, self._dtype, metric, num_warps=WARPS)


class _Tables:
    """All that one call needs to know about shapes: what is scored, then what is only updated, by dtype."""

    def __init__(
        self,
        rows: list[list[int]],
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        updated: Sequence[bool],
        ema: Tensor,
        metric: str,
    ):
        for i, row in enumerate(rows):
            check_segment(i, row, params, ema.numel())
        scored = [row for row in rows if params[row[0]].numel() and (grads[row[0]].numel() or metric == "magnitude")]
        self.sums = Sums(scored, ema.numel(), ema.device)
        named = {row[0] for row in scored}
        entries = self.sums.scored + [
            Scored(i, Cut.of(1, 1, param.numel()), _NO_SUMS)
            for i, param in enumerate(params)
            if updated[i] and param.numel() and i not in named
        ]
        of: dict[torch.dtype, list[Scored]] = {}
        for entry in entries:
            of.setdefault(params[entry.tensor].dtype, []).append(entry)
        self.launches = [_Launch(chosen, updated, dtype, ema.device) for dtype, chosen in of.items()]


_RECENT: Recent[_Tables] = Recent()


@triton.jit
def adamw_kernel(owners, shapes, table, params, factors, grad_factor, sums, DTYPE: tl.constexpr, METRIC: tl.constexpr):
    """One piece of one parameter."""
    owner = owner_of_piece(owners)
    factor = factors + tl.load(params + owner) * _FACTORS
    scale = tl.load(factor)
    if grad_factor is not None:
        scale *= tl.load(grad_factor)
    if tl.load(table + owner * _TABLE + 4) != 0:
        _step(shapes, owner, table, factor, scale, sums, DTYPE, METRIC, True)
    else:
        _step(shapes, owner, table, factor, scale, sums, DTYPE, METRIC, False)


@triton.jit
def _step(
    shapes,
    owner,
    table,
    factor,
    scale,
    sums,
    DTYPE: tl.constexpr,
    METRIC: tl.constexpr,
    EVEN: tl.constexpr,
):
    _, first, rest, rows, stride, columns, place, single = place_of_piece(shapes, owner)
    entry = owner * _TABLE
    weights, grads = address(table, entry, DTYPE, EVEN), address(table, entry + 1, DTYPE, EVEN)
    averages, squares = address(table, entry + 2, DTYPE, EVEN), address(table, entry + 3, DTYPE, EVEN)
    updated = tl.load(table + entry + 2) != 0
    average, decay, square = tl.load(factor + 1), tl.load(factor + 2), tl.load(factor + 3)
    root, eps, keep, rate = tl.load(factor + 4), tl.load(factor + 5), tl.load(factor + 6), tl.load(factor + 7)
    terms = tl.zeros([ROWS, COLUMNS], tl.float32)
    for row in range(0, rows, ROWS):
        at, there = tile_of_piece(first, rest, stride, columns, row, EVEN)
        w = tl.load(weights + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grads + at, mask=there, other=0.0).to(tl.float32)
        terms += terms_of(w, g, METRIC)
        if updated:
            scaled = g * scale
            m = tl.load(averages + at, mask=there, other=0.0).to(tl.float32)
            v = tl.load(squares + at, mask=there, other=0.0).to(tl.float32)
            m += average * (scaled - m)
            v = decay * v + square * scaled * scaled
            tl.store(averages + at, m, mask=there)
            tl.store(squares + at, v, mask=there)
            tl.store(weights + at, keep * w - rate * (m / (tl.sqrt(v) * root + eps)), mask=there)
    if place >= 0:
        store_sums(sums, place, terms, columns, single)
