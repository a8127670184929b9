"""Random problems of gather_components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dmao_kernels import gather_components
from dmao_kernels.ops.gather_components.reference import gather_components_reference
from dmao_kernels.testing import to_float64
from tests.fuzz.problem import Draw, Problem, Results


def problem(draw: Draw) -> Problem:
    tensors, index, given = [], [], []
    for _ in range(draw.size(5)):
        dtype, repeats, run = draw.dtype(), draw.size(20), draw.size(120)
        components, extra, count = draw.size(6), draw.size(4), draw.size(9)
        tensors.append(draw.tensor(repeats, components, run, dtype=dtype, grad=False))
        given.append(draw.tensor(repeats, extra, run, dtype=dtype, grad=False))
        rows = [[draw.random.randrange(-1, components), draw.random.randrange(-1, extra)] for _ in range(count)]
        index.append(torch.tensor(rows, dtype=torch.int64).reshape(-1, 2))

    def run_with(function: Callable[..., Any], convert: Callable[[Any], Any] = lambda value: value) -> Results:
        found = function(convert(tensors), index, convert(given))
        return {f"tensor {i}": tensor for i, tensor in enumerate(found)}

    return Problem(
        ours=lambda: run_with(gather_components),
        same=lambda: run_with(gather_components_reference),
        truth=lambda: run_with(gather_components_reference, to_float64),
    )
