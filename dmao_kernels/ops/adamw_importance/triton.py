"""adamw_importance_ in Triton: one launch over all parameters, through tables of their addresses.

Floor: w, g, m, v are read and w, m, v written once (28 bytes per float32 parameter) at memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.config import cdiv
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.pieces import (
    COLUMNS,
    ROWS,
    Cut,
    Pieces,
    address,
    options_on,
    owner_of_piece,
    place_of_piece,
    store_sums,
    tile_of_piece,
)
from dmao_kernels.ops._triton.scored import DTYPES, Scored, Sums, terms_of
from dmao_kernels.ops._triton.tables import Addresses, Recent, Uploaded, queue, upload
from dmao_kernels.ops.adamw_importance.reference import GROUP_COLUMNS, check_tables
from dmao_kernels.ops.importance.reference import check_segment

_TABLE = tl.constexpr(5)
_FACTORS = tl.constexpr(8)
_GROUP = tl.constexpr(len(GROUP_COLUMNS))
_STEPS = tl.constexpr(64)  # parameters of a program
_NO_SUMS = -1
_ONE_STEP = torch.ones((), device="cpu")


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
    """The contract of `adamw_importance_`. Tables are made where a shape, a dtype or a segment has changed."""
    check_tables(segments, groups, group_of)
    updated = [step.numel() != 0 for step in steps]
    key = (
        tuple(segments.flatten().tolist()),
        tuple([(param.numel(), param.dtype) for param in params]),
        tuple([grad.numel() for grad in grads]),
        tuple(updated),
        ema.numel(),
        metric == "magnitude",
        ema.device,
        queue(ema.device),
    )
    tables = _RECENT.get(key, lambda: _Tables(segments, params, grads, updated, ema, metric))
    sums = torch.empty(tables.sums.count, dtype=torch.float32, device=ema.device)
    if any(step.device != ema.device for step in steps if step.numel()):
        factors = count_steps(steps, groups, group_of, ema.device)
    else:
        factors = tables.count_steps(steps, groups, group_of)
    for launch in tables.launches:
        launch.run(params, grads, exp_avgs, exp_avg_sqs, factors, grad_factor, sums, metric)
    tables.sums.average_(ema, sums, inverse_count, beta)


def count_steps(steps: Sequence[Tensor], groups: Tensor, group_of: Tensor, device: torch.device) -> Tensor:
    """Counts every parameter's step, and returns the factors of the new one [parameters, 8] on the device.

    They are computed where the steps are: on the CPU, if all are. Parameters that are only scored have factors, too.
    """
    counted = [step for step in steps if step.numel()]
    torch._foreach_add_(counted, 1)
    where = torch.device("cpu") if all(step.is_cpu for step in counted) else device
    counts = [step if step.numel() else _ONE_STEP for step in steps]
    if where != _ONE_STEP.device:
        counts = [step.to(where, non_blocking=True) for step in counts]
    done = torch.stack(counts)
    numbers = upload(groups, where).index_select(0, upload(group_of, where))
    lr, beta1, beta2, eps, weight_decay, maximize = numbers.unbind(1)
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
    return upload(table, device) if table.is_cpu else table


class _Launch:
    """The pieces of all parameters of one dtype."""

    def __init__(self, entries: Sequence[Scored], updated: Sequence[bool], dtype: torch.dtype, device: torch.device):
        self._tensors = [entry.tensor for entry in entries]
        self._updated = [updated[entry.tensor] for entry in entries]
        self._dtype = DTYPES[dtype]
        self._pieces = Pieces([entry.cut for entry in entries], [entry.sums for entry in entries], device)
        self._param_of = upload(
            torch.tensor([entry.tensor for entry in entries], dtype=torch.int32, device="cpu"), device
        )
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
            [params[i].data_ptr() for i in self._tensors],
            # Magnitudes are scored without a gradient: the kernel reads something in its place.
            [grads[i].data_ptr() if grads[i].numel() else params[i].data_ptr() for i in self._tensors],
            *(
                [
                    moments[i].data_ptr() if updated else 0
                    for i, updated in zip(self._tensors, self._updated, strict=True)
                ]
                for moments in (exp_avgs, exp_avg_sqs)
            ),
        )
        tensors = (pieces.owners, pieces.shapes, table, self._param_of, factors, grad_factor, sums)
        adamw_kernel[(pieces.count,)](*tensors, self._dtype, metric, **options_on(sums.device))


class _Tables:
    """All that one call needs to know about shapes: what is scored, then what is only updated, by dtype."""

    def __init__(
        self,
        segments: Tensor,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        updated: Sequence[bool],
        ema: Tensor,
        metric: str,
    ) -> None:
        rows = segments.tolist()
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
        self._steps, self._group_of = Uploaded(torch.int64, ema.device), Uploaded(torch.int64, ema.device)
        self._groups = Uploaded(torch.float64, ema.device)

    def count_steps(self, steps: Sequence[Tensor], groups: Tensor, group_of: Tensor) -> Tensor:
        """`count_steps` where the steps are on the device."""
        factors = torch.empty(len(steps), _FACTORS.value, dtype=torch.float32, device=self.sums.device)
        steps_kernel[(cdiv(len(steps), _STEPS.value),)](
            self._steps.tensor([step.data_ptr() if step.numel() else 0 for step in steps]),
            self._groups.tensor(groups.tolist()),
            self._group_of.tensor(group_of.tolist()),
            factors,
            len(steps),
            num_warps=2,
        )
        return factors


_RECENT: Recent[_Tables] = Recent()


@kernel()
def steps_kernel(steps, groups, group_of, factors, count):
    """Counts the steps of some parameters, and makes of each group's numbers the factors of the new step."""
    i = tl.program_id(0) * _STEPS + tl.arange(0, _STEPS)
    there = i < count
    address_of_step = tl.load(steps + i, mask=there, other=0)
    step = address_of_step.to(tl.pointer_type(tl.float32))
    counts = there & (address_of_step != 0)
    done = tl.load(step, mask=counts, other=0.0) + 1
    tl.store(step, done, mask=counts)
    done = done.to(tl.float64)
    group = groups + tl.load(group_of + i, mask=there, other=0) * _GROUP
    lr, beta1 = tl.load(group, mask=there, other=0.0), tl.load(group + 1, mask=there, other=0.0)
    beta2, eps = tl.load(group + 2, mask=there, other=0.0), tl.load(group + 3, mask=there, other=0.0)
    weight_decay, maximize = tl.load(group + 4, mask=there, other=0.0), tl.load(group + 5, mask=there, other=0.0)
    rest1, rest2 = 1 - _power(beta1, done), 1 - _power(beta2, done)
    factor = factors + i * _FACTORS
    tl.store(factor, (1 - 2 * maximize).to(tl.float32), mask=there)
    tl.store(factor + 1, (1 - beta1).to(tl.float32), mask=there)
    tl.store(factor + 2, beta2.to(tl.float32), mask=there)
    tl.store(factor + 3, (1 - beta2).to(tl.float32), mask=there)
    tl.store(factor + 4, (1 / tl.sqrt(rest2)).to(tl.float32), mask=there)
    tl.store(factor + 5, eps.to(tl.float32), mask=there)
    tl.store(factor + 6, (1 - lr * weight_decay).to(tl.float32), mask=there)
    tl.store(factor + 7, (lr / rest1).to(tl.float32), mask=there)


@triton.jit
def _power(base, exponent):
    """base ** exponent for a base in [0, 1) and an exponent above 0, in float64."""
    return tl.where(base > 0, tl.exp2(exponent * tl.log2(tl.where(base > 0, base, 1.0))), 0.0)


@kernel()
def adamw_kernel(
    owners, shapes, table, param_of, factors, grad_factor, sums, DTYPE: tl.constexpr, METRIC: tl.constexpr
):
    """One piece of one parameter."""
    owner = owner_of_piece(owners)
    factor = factors + tl.load(param_of + owner) * _FACTORS
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
        if updated:
            scaled = g * scale
            m = tl.load(averages + at, mask=there, other=0.0).to(tl.float32)
            v = tl.load(squares + at, mask=there, other=0.0).to(tl.float32)
            m += average * (scaled - m)
            v = decay * v + square * scaled * scaled
            tl.store(averages + at, m, mask=there)
            tl.store(squares + at, v, mask=there)
            tl.store(weights + at, keep * w - rate * (m / (tl.sqrt(v) * root + eps)), mask=there)
        terms += terms_of(w, g, METRIC)
    if place >= 0:
        store_sums(sums, place, terms, columns, single)
