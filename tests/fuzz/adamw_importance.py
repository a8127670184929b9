"""Random problems of adamw_importance_."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dmao_kernels import adamw_importance_
from dmao_kernels.ops.adamw_importance.reference import adamw_importance_reference_
from dmao_kernels.ops.importance.reference import METRICS
from dmao_kernels.testing import to_float64
from tests.fuzz.importance import CONTIGUOUS, segments
from tests.fuzz.problem import Draw, Problem, Results


def problem(draw: Draw) -> Problem:
    shapes, table, inverse_count = segments(draw)
    kept = [i for i in range(len(shapes)) if draw.chance(0.8)]  # the others are updated, not scored
    table = table[kept]
    dtype = draw.dtype()

    def tensors(strides: tuple[str, ...] = CONTIGUOUS) -> list[torch.Tensor]:
        return [draw.tensor(*shape, dtype=dtype, grad=False, strides=strides) for shape in shapes]

    params, averages, squares = tensors(), tensors(), tensors()
    for square in squares:
        square.abs_().add_(0.05)  # near zero the step amplifies rounding, PyTorch's as well as ours
    grads = tensors(("contiguous", "transposed", "spaced"))
    steps = [torch.tensor(float(draw.size(1000))) for _ in shapes]
    groups = torch.tensor(
        [
            [
                10 ** -draw.size(5, least=1),
                draw.one_of(0.0, 0.9),
                draw.one_of(0.9, 0.999),
                1e-8,
                draw.one_of(0.0, 0.1),
                maximize,
            ]
            for maximize in (0.0, 1.0)
        ],
        dtype=torch.float64,
    )
    group_of = torch.tensor([draw.one_of(0, 1) for _ in shapes], dtype=torch.int64)
    ema = draw.tensor(len(inverse_count), grad=False, strides=CONTIGUOUS)
    metric, beta = draw.one_of(*METRICS), draw.one_of(0.0, 0.9, 1.0)
    factor = draw.one_of(None, torch.tensor(0.37))

    def public(*args: Any) -> None:
        *state, grad_factor, ema, segments, inverse_count, metric, beta = args
        adamw_importance_(*state, ema, segments, inverse_count, metric, beta, grad_factor)

    def run(function: Callable[..., None], convert: Callable[[Any], Any] = lambda value: value) -> Results:
        state = {
            name: [convert(tensor).clone() for tensor in values]
            for name, values in (("param", params), ("exp_avg", averages), ("exp_avg_sq", squares))
        }
        average = convert(ema).clone()
        counts = [step.clone() for step in steps]
        function(
            *(state["param"], convert(grads), state["exp_avg"], state["exp_avg_sq"], counts, groups, group_of, factor),
            *(average, table, convert(inverse_count), metric, beta),
        )
        results = {f"{name} {i}": tensor for name, values in state.items() for i, tensor in enumerate(values)}
        return {**results, "ema": average}

    return Problem(
        ours=lambda: run(public),
        same=lambda: run(adamw_importance_reference_),
        truth=lambda: run(adamw_importance_reference_, to_float64),
    )
