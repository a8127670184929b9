"""The residual step against eager PyTorch: `make bench ARGS="-k dropout_add"`.

dropout: dropout_add without x, against F.dropout. add: against x + scale * F.dropout(y). add+norm: against that and
F.layer_norm of the sum. Floor: every array once, forward and backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._oracle import check
from benchmarks.registry import Case, Problem, register
from dmao_kernels import dropout_add, dropout_add_layer_norm
from dmao_kernels.ops.dropout_add.reference import dropout_add_layer_norm_reference, dropout_add_reference

SHAPES = ((4000, 1536), (4000, 384), (500, 384))
SCALE, P = 0.5, 0.1

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def _eager(kind: str, p: float) -> Function:
    def step(x: Tensor, y: Tensor) -> Tensor:
        return x + SCALE * F.dropout(y, p)

    def norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = step(x, y)
        return total, F.layer_norm(total, x.shape[-1:], weight, bias)

    return {"dropout": lambda y: F.dropout(y, p), "add": step, "add+norm": norm}[kind]


def _ours(kind: str, p: float, seed: Tensor, reference: bool = False) -> Function:
    add = dropout_add_reference if reference else dropout_add
    norm = dropout_add_layer_norm_reference if reference else dropout_add_layer_norm
    options = {"p": p, "seed": seed}
    return {
        "dropout": lambda y: add(None, y, **options),
        "add": lambda x, y: add(x, y, scale=SCALE, **options),
        "add+norm": lambda *inputs: norm(*inputs, scale=SCALE, **options),
    }[kind]


def _check(kind: str, p: float, seed: Tensor, inputs: list[Tensor]) -> None:
    """Raises AssertionError unless the kernel is as close to float64 as PyTorch is."""

    def joined(function: Function) -> Callable[..., Tensor]:
        def call(*arguments: Tensor) -> Tensor:
            found = function(*arguments)
            return found if isinstance(found, Tensor) else torch.stack(found)

        return call

    ours, reference = (joined(_ours(kind, p, seed, reference)) for reference in (False, True))
    grad = torch.randn_like(reference(*inputs))
    check(ours, reference, *inputs, grad=grad)


def make(kind: str, rows: int, width: int, dtype: torch.dtype, p: float, backward: bool) -> Problem:
    """Forward, or forward with backward."""
    seed = torch.tensor([7])
    x, y = (torch.randn(rows, width).to(dtype).requires_grad_() for _ in range(2))
    parameters = [torch.randn(width).to(dtype).requires_grad_() for _ in range(2)]
    inputs = {"dropout": [y], "add": [x, y], "add+norm": [x, y, *parameters]}[kind]
    outputs = 2 if kind == "add+norm" else 1
    grads = [torch.randn(rows, width).to(dtype) for _ in range(outputs)]

    def run(function: Function) -> Callable[[], object]:
        def call() -> object:
            found = function(*inputs)
            found = (found,) if isinstance(found, Tensor) else found
            return torch.autograd.grad(found, inputs, grads) if backward else found

        return call

    # Forward: x and y in, the sum and the norm out. Backward: the gradients in, of x (a copy of that of the sum
    # without a norm) and y out; the norm's needs the sum as well.
    arrays = {"dropout": 2, "add": 3, "add+norm": 4}[kind] + backward * {"dropout": 2, "add": 2, "add+norm": 5}[kind]
    return Problem(
        {"ours": run(_ours(kind, p, seed)), "eager": run(_eager(kind, p))},
        gate=lambda: _check(kind, p, seed, inputs),
        bytes=arrays * y.nbytes,
    )


def _targets(kind: str, dtype: torch.dtype, p: float, backward: bool) -> dict[str, float]:
    if kind == "dropout":
        return {"eager": 0.06}
    return {}


for kind, shape, dtype, p, backward in itertools.product(
    ("dropout", "add", "add+norm"), SHAPES, (torch.float32, torch.bfloat16), (0.0, P), (False, True)
):
    if p == 0 and (kind != "add+norm" or shape != SHAPES[0] or dtype != torch.float32):
        continue
    if dtype == torch.bfloat16 and shape[0] != 4000:
        continue
    direction = "fwd+bwd" if backward else "fwd"
    register(
        Case(
            "dropout_add",
            f"{kind} {'x'.join(map(str, shape))} p={p} {direction}",
            partial(make, kind, *shape, dtype, p, backward),
            dtype=dtype,
            targets=_targets(kind, dtype, p, backward),
            quick=dtype == torch.float32 and p > 0 and shape[0] == 4000 and (backward or kind == "dropout"),
        )
    )
