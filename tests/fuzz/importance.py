"""Random problems of importance_."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmao_kernels import importance_
from dmao_kernels.ops.importance.reference import METRICS, importance_reference_
from dmao_kernels.testing import to_float64
from tests.fuzz.problem import Draw, Problem, Results

CONTIGUOUS = ("contiguous",)


def segments(draw: Draw, most_tensors: int = 4) -> tuple[list[tuple[int, int, int]], Tensor, Tensor]:
    """Shapes (repeats, components, run) of some tensors, the table that names them, and 1 / entries per component."""
    shapes = [(draw.size(40), draw.size(30), draw.size(90)) for _ in range(draw.size(most_tensors))]
    rows, counts, first = [], [], 0
    for index, (repeats, components, run) in enumerate(shapes):
        rows.append([index, repeats, components, run, first])
        counts += [max(repeats * run, 1)] * components
        first += components
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
    return shapes, table, 1.0 / torch.tensor(counts, dtype=torch.float32)


def problem(draw: Draw) -> Problem:
    shapes, table, inverse_count = segments(draw)
    dtypes = draw.dtype(), draw.dtype()
    weights = [draw.tensor(*shape, dtype=dtypes[0], grad=False, strides=CONTIGUOUS) for shape in shapes]
    grads = [draw.tensor(*shape, dtype=dtypes[1], grad=False) for shape in shapes]
    ema = draw.tensor(len(inverse_count), grad=False, strides=CONTIGUOUS)
    metric, beta = draw.one_of(*METRICS), draw.one_of(0.0, 0.9, 1.0)

    def run(function: Callable[..., None], convert: Callable[[Any], Any] = lambda value: value) -> Results:
        average = convert(ema).clone()
        function(average, convert(weights), convert(grads), table, convert(inverse_count), metric, beta)
        return {"ema": average}

    return Problem(
        ours=lambda: run(importance_),
        same=lambda: run(importance_reference_),
        truth=lambda: run(importance_reference_, to_float64),
    )
