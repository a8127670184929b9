"""Is every operation as close to float64 as PyTorch is in the same dtype, and the same in every call?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels.dispatch import choose_backend, why_not
from dmao_kernels.gpu_choice import preferring
from dmao_kernels.ops.adamw_importance.reference import adamw_importance_reference_
from dmao_kernels.ops.gather_components.reference import gather_components_reference
from dmao_kernels.ops.importance.reference import METRICS, importance_reference_
from dmao_kernels.testing.compare import assert_close_to_oracle
from dmao_kernels.testing.oracle import outputs_and_gradients, to_float64
from dmao_kernels.testing.selftest.problems import Draw, Problem, first_line, problems

SHAPES = ((1, 4, 600), (40, 4, 33), (1, 4, 1), (3, 4, 264))  # (repeats, components, run)
GROUP = (1e-2, 0.9, 0.999, 1e-8, 0.1, 0.0)


@dataclass(frozen=True)
class Check:
    """One operation in one dtype. problem: what is wrong, or ""."""

    op: str
    name: str
    dtype: str
    backend: str
    problem: str


def checks(device: str, dtypes: tuple[torch.dtype, ...]) -> Iterator[Check]:
    """All of them, one by one. What cannot run is a problem as well: the others are still looked at."""
    for dtype in dtypes:
        yield from _checks_of(device, dtype, "")
        if torch.device(device).type == "cuda" and not why_not("cuda"):
            with preferring("cuda"):
                yield from _checks_of(device, dtype, "cuda")


def _checks_of(device: str, dtype: torch.dtype, backend: str) -> Iterator[Check]:
    """backend: the only one that is to be checked, "" for the one that the library chooses."""
    label = str(dtype).removeprefix("torch.")
    for problem in problems(device, dtype, large=torch.device(device).type == "cuda"):
        chosen = choose_backend(problem.op, *problem.tensors.values())
        if backend in ("", chosen):
            yield Check(problem.op, problem.name, label, chosen, _caught(_check, problem))
    for op, name, check in _IN_PLACE:
        draw = Draw(device, dtype)
        chosen = choose_backend(op, draw(1))
        if backend in ("", chosen):
            yield Check(op, name, label, chosen, _caught(check, draw))


def _caught(check: Callable[..., None], *arguments: object) -> str:
    try:
        check(*arguments)
    except Exception as error:  # whatever a broken driver or compiler may raise belongs into the report
        return first_line(error)
    return ""


def _check(problem: Problem) -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in problem.tensors.items()}
    with torch.no_grad():
        shape = problem.function(**tensors, **problem.options).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(next(iter(tensors.values())))
    ours, again, peer, truth = (
        outputs_and_gradients(function, grad_output=grad, **inputs, **problem.options)
        for function, inputs in (
            (problem.function, tensors),
            (problem.function, tensors),
            (problem.reference, tensors),
            (problem.reference, to_float64(tensors)),
        )
    )
    named = [
        {"output": output, **{f"gradient of {key}": g for key, g in grads.items()}}
        for output, grads in (ours, again, peer, truth)
    ]
    for name in named[0]:
        found, repeated, same_dtype, exact = (results[name] for results in named)
        assert torch.equal(found, repeated), f"{name} differs from call to call"
        assert_close_to_oracle(found, same_dtype, exact, name=name, slack=2.0)


class _Scoring:
    """Tensors of several shapes with 4 components each, and what scores and updates them."""

    def __init__(self, draw: Draw) -> None:
        self.weights, self.grads, self.exp_avgs, squares = ([draw(*shape) for shape in SHAPES] for _ in range(4))
        self.exp_avg_sqs = [square.abs() for square in squares]
        self.steps = [torch.tensor(3.0) for _ in SHAPES]
        self.groups = torch.tensor([GROUP], dtype=torch.float64)
        self.group_of = torch.zeros(len(SHAPES), dtype=torch.int64)
        self.segments = torch.tensor([(i, *shape, 4 * i) for i, shape in enumerate(SHAPES)])
        counts = torch.tensor([repeats * run for repeats, _, run in SHAPES]).repeat_interleave(4)
        self.inverse_count = (1.0 / counts).to(draw.device)
        self.ema = torch.rand(4 * len(SHAPES), generator=torch.Generator().manual_seed(2)).to(draw.device)

    def scored(self, function: Callable[..., None], metric: str, wide: bool = False) -> list[Tensor]:
        convert = to_float64 if wide else (lambda value: value)
        ema = convert(self.ema).clone()
        function(
            ema, convert(self.weights), convert(self.grads), self.segments, convert(self.inverse_count), metric, 0.9
        )
        return [ema]

    def stepped(self, function: Callable[..., None], wide: bool = False) -> list[Tensor]:
        convert = to_float64 if wide else (lambda value: value)
        lists = (self.weights, self.exp_avgs, self.exp_avg_sqs)
        params, averages, squares = ([tensor.clone() for tensor in convert(tensors)] for tensors in lists)
        ema, steps = convert(self.ema).clone(), [step.clone() for step in self.steps]
        function(
            params=params,
            grads=convert(self.grads),
            exp_avgs=averages,
            exp_avg_sqs=squares,
            steps=steps,
            groups=self.groups,
            group_of=self.group_of,
            grad_factor=None,
            ema=ema,
            segments=self.segments,
            inverse_count=convert(self.inverse_count),
            metric="taylor",
            beta=0.9,
        )
        return [ema, *params, *averages, *squares]


def _compare(ours: list[Tensor], again: list[Tensor], peer: list[Tensor], truth: list[Tensor]) -> None:
    for i, (found, repeated, same_dtype, exact) in enumerate(zip(ours, again, peer, truth, strict=True)):
        assert torch.equal(found, repeated), f"result {i} differs from call to call"
        assert_close_to_oracle(found, same_dtype, exact, name=f"result {i}")


def _importance(draw: Draw) -> None:
    scoring = _Scoring(draw)
    for metric in METRICS:
        _compare(
            scoring.scored(dmao_kernels.importance_, metric),
            scoring.scored(dmao_kernels.importance_, metric),
            scoring.scored(importance_reference_, metric),
            scoring.scored(importance_reference_, metric, wide=True),
        )


def _adamw(draw: Draw) -> None:
    scoring = _Scoring(draw)
    _compare(
        scoring.stepped(dmao_kernels.adamw_importance_),
        scoring.stepped(dmao_kernels.adamw_importance_),
        scoring.stepped(adamw_importance_reference_),
        scoring.stepped(adamw_importance_reference_, wide=True),
    )


def _gather(draw: Draw) -> None:
    index = torch.tensor([[0, -1], [2, 1], [-1, 0], [-1, -1], [3, -1]])
    tensors, given = [draw(*shape) for shape in SHAPES], [draw(shape[0], 2, shape[2]) for shape in SHAPES]
    arguments = tensors, [index] * len(SHAPES), given
    for found, expected in zip(
        dmao_kernels.gather_components(*arguments), gather_components_reference(*arguments), strict=True
    ):
        assert torch.equal(found, expected), "components differ"


_IN_PLACE: tuple[tuple[str, str, Callable[[Draw], None]], ...] = (
    ("importance_", "all metrics", _importance),
    ("adamw_importance_", "a step", _adamw),
    ("gather_components", "moved, given, shared", _gather),
)
