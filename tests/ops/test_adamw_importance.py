"""adamw_importance_: against torch.optim.AdamW and importance_, in float64 and in the dtype itself."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels.ops.importance.reference import METRICS
from dmao_kernels.testing import Poison, assert_close_to_oracle
from tests.ops.common import BACKENDS, assert_passes_under, assert_threads_do_not_change_a_bit, native

GROUP = (1e-2, 0.9, 0.999, 1e-8, 0.1, 0.0)
OTHER = (3e-3, 0.8, 0.95, 1e-6, 0.0, 1.0)

# (repeats, components, run): both sides of a vector, of the rule for short runs and of a chunk (65536 elements).
SHAPES = [
    (1, 1, 1),
    (1, 17, 1),
    (3, 5, 7),
    (130, 3, 5),
    (2, 4, 63),
    (2, 3, 65),
    (384, 4, 37),
    (1, 5, 4097),
    (3, 2, 40000),
    (2, 70001, 1),
    (5000, 2, 1),
]


class Problem:
    """Random parameters; of those that are scored the shape is (repeats, components, run), all components distinct."""

    def __init__(
        self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, scored: str = "alternate"
    ) -> None:
        self.params = [torch.randn(shape).to(dtype) for shape in shapes]
        self.grads = [torch.randn(shape).to(dtype) for shape in shapes]
        self.exp_avgs = [(0.1 * torch.randn(shape)).to(dtype) for shape in shapes]
        self.exp_avg_sqs = [torch.rand(shape).to(dtype) for shape in shapes]
        self.steps = [torch.tensor(float(i)) for i in range(len(shapes))]
        self.groups = torch.tensor([GROUP, OTHER], dtype=torch.float64)
        self.group_of = torch.arange(len(shapes)) % 2
        rows, counts, first = [], [], 0
        for index, shape in enumerate(shapes):
            if scored == "all" or (scored == "alternate" and index % 2 == 0):
                repeats, components, run = shape
                rows.append([index, repeats, components, run, first])
                counts += [repeats * run] * components
                first += components
        self.segments = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
        self.inverse_count = 1.0 / torch.tensor(counts, dtype=torch.float32)
        self.ema = torch.rand(first)
        self.grad_factor: Tensor | None = None
        self.metric, self.beta = "taylor", 0.9

    def state(self) -> dict[str, list[Tensor]]:
        """What a step changes."""
        named = {name: getattr(self, name) for name in ("params", "exp_avgs", "exp_avg_sqs", "steps")}
        return {**named, "ema": [self.ema]}

    def copy(self) -> Problem:
        other = object.__new__(Problem)
        for name, value in vars(self).items():
            value = [t.clone() for t in value] if isinstance(value, list) else value
            setattr(other, name, value.clone() if isinstance(value, Tensor) else value)
        return other

    def run(self, backend: str, **changes: Any) -> dict[str, list[Tensor]]:
        """The state after a step; the problem itself stays as it is."""
        other = self.copy()
        with dmao_kernels.use_backend(backend):
            dmao_kernels.adamw_importance_(**{**vars(other), **changes})
        return other.state()

    def torch(self, dtype: torch.dtype | None = None) -> dict[str, list[Tensor]]:
        """The same by torch.optim.AdamW, fused, and importance_'s reference: in another dtype where one is given."""
        other = self.copy()
        convert = (lambda t: t.to(dtype)) if dtype else (lambda t: t)
        params = [torch.nn.Parameter(convert(p)) for p in other.params]
        grads = [convert(g) for g in other.grads]
        ema = convert(other.ema)
        with torch.no_grad(), dmao_kernels.use_backend("reference"):
            torch.ops.dmao.importance_reference_(
                ema, params, grads, other.segments, convert(other.inverse_count), other.metric, other.beta
            )
        optimizer = torch.optim.AdamW([{"params": [p]} for p in params], fused=True)
        for i, (param, group) in enumerate(zip(params, optimizer.param_groups, strict=True)):
            lr, beta1, beta2, eps, weight_decay, maximize = other.groups[other.group_of[i]].tolist()
            group.update(lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, maximize=bool(maximize))
            optimizer.state[param] = {
                "step": other.steps[i],
                "exp_avg": convert(other.exp_avgs[i]),
                "exp_avg_sq": convert(other.exp_avg_sqs[i]),
            }
            param.grad = grads[i] if other.grad_factor is None else grads[i] * convert(other.grad_factor)
        optimizer.step()
        states = [optimizer.state[p] for p in params]
        return {
            "params": [p.detach() for p in params],
            **{f"{name}s": [s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")},
            "ema": [ema],
        }

    def check(self, backend: str, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        ours, same, truth = self.run(backend), self.torch(), self.torch(torch.float64)
        for name, tensors in ours.items():
            for i, tensor in enumerate(tensors):
                if name == "steps":
                    assert tensor == same[name][i]
                else:
                    assert_close_to_oracle(tensor, same[name][i], truth[name][i], name=f"{name}[{i}]")


def equal(first: dict[str, list[Tensor]], second: dict[str, list[Tensor]]) -> bool:
    return all(torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_oracle(backend: str, metric: str, dtype: torch.dtype) -> None:
    Problem([(3, 5, 7), (20, 3), (2, 4, 99), (7,), (70, 3, 5)], dtype).check(backend, metric=metric)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle_of_each_shape(backend: str, shape: tuple[int, int, int]) -> None:
    Problem([shape, shape]).check(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_oracle_with_a_factor(backend: str, dtype: torch.dtype) -> None:
    problem = Problem([(3, 5, 7), (4, 2, 70)], dtype, scored="all")
    scores = problem.run(backend)["ema"]
    problem.check(backend, grad_factor=torch.tensor(0.37))
    assert torch.equal(problem.run(backend)["ema"][0], scores[0])  # scores are those of the whole gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", [(0.0, 0.9, 0.999, 1e-8, 0.1, 0.0), (1e-3, 0.0, 0.0, 1e-16, 1e-3, 0.0)], ids=str)
def test_oracle_at_the_ends(backend: str, group: tuple[float, ...]) -> None:
    Problem([(3, 5, 7), (2, 3)]).check(backend, groups=torch.tensor([group, group], dtype=torch.float64))


@native
@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512", "avx512_bf16"])
def test_oracle_under_each_capability(
    capability: str, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert_passes_under(capability, run_python, __file__, "oracle and not capability or scores")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_importance(backend: str, metric: str, dtype: torch.dtype) -> None:
    problem = Problem([(384, 4, 37), (2, 3), (3, 2, 40000), (1, 2, 3), (40, 6, 64), (9,), (1, 17, 1)], dtype)
    ema = problem.ema.clone()
    with dmao_kernels.use_backend(backend):
        dmao_kernels.importance_(
            ema, problem.params, problem.grads, problem.segments, problem.inverse_count, metric, problem.beta
        )
    assert torch.equal(problem.run(backend, metric=metric)["ema"][0], ema)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scoring_does_not_change_the_update(backend: str) -> None:
    problem = Problem([(384, 4, 37), (5, 2, 70), (40, 6, 64)], scored="all")
    scored = problem.run(backend)
    plain = problem.run(backend, segments=torch.empty(0, 5, dtype=torch.int64))
    assert not torch.equal(scored.pop("ema")[0], plain.pop("ema")[0])
    assert equal(scored, plain)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    problem = Problem([(384, 4, 384), (300, 700), (40, 1000, 3), (1,), (1, 4, 50000)], dtype)
    assert_threads_do_not_change_a_bit(lambda: [t for tensors in problem.run("cpu").values() for t in tensors])


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_scored(backend: str) -> None:
    """A parameter without a step is scored as importance_ does, and not updated."""
    problem = Problem([(2, 4, 3), (2, 5), (3, 2, 70), (6,)])
    expected = problem.run(backend)
    empty = torch.empty(0)
    for name in ("steps", "exp_avgs", "exp_avg_sqs"):
        getattr(problem, name)[2] = empty
        expected[name][2] = empty
    expected["params"][2] = problem.params[2]
    assert equal(problem.run(backend), expected)
    problem.grads[2] = empty
    expected["ema"][0][4:] = problem.ema[4:]
    assert equal(problem.run(backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_needs_the_old_values_notices(backend: str) -> None:
    """As with torch.optim's. The kernel tells a parameter that is only scored apart, the reference does not."""
    problem = Problem([(2, 4, 3), (2, 5)])
    problem.steps[1] = problem.exp_avgs[1] = problem.exp_avg_sqs[1] = torch.empty(0)
    for param in problem.params:
        param.requires_grad_()
    updated, only_scored = (param.square().sum() for param in problem.params)
    with torch.no_grad(), dmao_kernels.use_backend(backend):
        dmao_kernels.adamw_importance_(**vars(problem))
    if backend != "reference":
        only_scored.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        updated.backward()
    kept = (problem.params[0], problem.exp_avgs[0], problem.exp_avg_sqs[0], problem.steps[0], problem.ema)
    assert all(tensor._version for tensor in kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_gradient_keeps_that_score_only(backend: str) -> None:
    problem = Problem([(2, 4, 70), (3,)])
    expected = problem.run(backend)
    problem.grads[0][1, 2, 3] = torch.nan
    expected["ema"][0][2] = problem.ema[2]
    found = problem.run(backend)
    assert torch.equal(found["ema"][0], expected["ema"][0])
    assert int(found["params"][0].isnan().sum()) == 1  # the update does what torch's does


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend: str) -> None:
    assert equal(Problem([]).run(backend), Problem([]).state())
    problem = Problem([(0, 2, 4), (3, 0)])
    found = problem.run(backend)
    assert [int(step) for step in found["steps"]] == [1, 2]  # as torch counts
    assert torch.equal(found["ema"][0], problem.ema)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_gradients(backend: str) -> None:
    problem = Problem([(4, 3, 6), (5, 8)])
    expected = problem.run(backend)
    problem.grads = [g.transpose(0, -1).contiguous().transpose(0, -1) for g in problem.grads]
    assert not problem.grads[0].is_contiguous()
    with dmao_kernels.use_backend(backend):
        dmao_kernels.adamw_importance_(**vars(problem))
    assert equal(problem.state(), expected)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 17, 1), (3, 5, 7), (2, 3, 65)], ids=str)
def test_stays_inside_its_tensors(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    problem = Problem([shape, shape], dtype)
    expected = problem.run("cpu")
    poison = Poison()
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        setattr(problem, name, [poison.around(t) for t in getattr(problem, name)])
    problem.ema = poison.around(problem.ema)
    dmao_kernels.adamw_importance_(**vars(problem))
    poison.check()
    assert equal(problem.state(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_in_full(backend: str) -> None:
    problem = Problem([(2, 4, 3), (1, 5, 1)])
    expected = problem.run(backend)

    def step(values: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            dmao_kernels.adamw_importance_(**values)
        return values["params"][0] + 1

    with dmao_kernels.use_backend(backend):
        result = torch.compile(step, fullgraph=True, backend="aot_eager")(vars(problem))
    assert equal(problem.state(), expected)
    assert torch.equal(result, expected["params"][0] + 1)


@native
def test_opcheck() -> None:
    p = Problem([(2, 4, 3), (1, 5, 1)])
    state = (p.params, p.grads, p.exp_avgs, p.exp_avg_sqs, p.steps, p.groups, p.group_of)
    scores = (p.ema, p.segments, p.inverse_count, "taylor", 0.5)
    torch.library.opcheck(torch.ops.dmao.adamw_importance_.default, (*state, torch.tensor(0.5), *scores))


REFUSED = [
    ("grads", [], "got 2 params but 0 grads"),
    ("params", [torch.zeros(2, 3).T, torch.zeros(5)], r"params\[0\] must be contiguous float32, bfloat16 or float16"),
    ("params", [torch.zeros(3, 2).double(), torch.zeros(5)], r"params\[0\] must be .*, got float64 \[3, 2\]"),
    ("grads", [torch.zeros(2, 3), torch.zeros(5)], r"grads\[0\] must have the dtype and shape of params\[0\]"),
    ("grads", [torch.zeros(0), torch.zeros(5)], r"grads\[0\] must have the dtype and shape of params\[0\]"),
    ("exp_avgs", [torch.zeros(3, 2), torch.zeros(5).bfloat16()], r"exp_avgs\[1\] must be contiguous and have"),
    ("exp_avg_sqs", [torch.zeros(2, 3).T, torch.zeros(5)], r"exp_avg_sqs\[0\] must be contiguous and have"),
    ("steps", [torch.zeros(()), torch.zeros(1)], r"steps\[1\] must be float32 \[\] or empty, got float32 \[1\]"),
    ("groups", torch.zeros(2, 6), r"groups must be float64 \[n_groups, 6\] \(lr, beta1, .*, got float32 \[2, 6\]"),
    ("group_of", torch.zeros(3, dtype=torch.int64), r"group_of must be int64 \[2\] on the CPU, got int64 \[3\]"),
    ("grad_factor", torch.zeros(1), r"grad_factor must be float32 \[\], got float32 \[1\]"),
    ("ema", torch.zeros(2, dtype=torch.float64), "ema must be contiguous float32"),
    ("metric", "taylour", "metric must be one of taylor, gradient, magnitude, signed, got 'taylour'"),
    ("beta", 1.5, r"beta must be in \[0, 1\], got 1.5"),
    *(
        (
            name,
            [torch.empty(3, 2), torch.empty(5, device="meta")],
            rf"{name}\[1\] must be on ema's device cpu, got meta",
        )
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")
    ),
    ("steps", [torch.zeros((), device="meta")] * 2, r"steps\[0\] must be on ema's device cpu, got meta"),
    ("grad_factor", torch.zeros((), device="meta"), "grad_factor must be on ema's device cpu, got meta"),
    ("inverse_count", torch.ones(2, device="meta"), "inverse_count must be on ema's device cpu, got meta"),
]


@pytest.mark.parametrize(("argument", "value", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_argument(argument: str, value: object, message: str) -> None:
    problem = Problem([(3, 2), (5,)], scored="none")
    problem.segments, problem.ema, problem.inverse_count = torch.tensor([[0, 3, 2, 1, 0]]), *torch.ones(2, 2)
    with pytest.raises(ValueError, match=f"^adamw_importance_: {message}"):
        dmao_kernels.adamw_importance_(**{**vars(problem), argument: value})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": [[0, 2, 4, 3, 0], [0, 2, 4, 3, 0]]}, "segments name tensor 0 twice"),
        ({"segments": [[2, 2, 4, 3, 0]]}, "names tensor 2 of 2"),
        ({"segments": [[0, 2, 4, 4, 0]]}, r"is 2 x 4 x 4, but weights\[0\] has 24 elements"),
        ({"segments": [[0, 2, 4, 3, 1]]}, "holds components 1 to 4, but ema has 4"),
        ({"group_of": [0, 2]}, r"group_of\[1\] names row 2 of 2 groups"),
        ({"group_of": [-1, 0]}, r"group_of\[0\] names row -1 of 2 groups"),
    ],
    ids=str,
)
def test_wrong_tables_change_nothing(backend: str, changes: dict[str, list[Any]], message: str) -> None:
    problem = Problem([(2, 4, 3), (5,)])
    before = problem.copy().state()
    tables = {name: torch.tensor(value) for name, value in changes.items()}
    with dmao_kernels.use_backend(backend), pytest.raises(RuntimeError, match=message):
        dmao_kernels.adamw_importance_(**{**vars(problem), **tables})
    assert equal(problem.state(), before)


@native
def test_operator_checks_its_own_arguments() -> None:
    """torch.ops can be called without the checks of the public function."""
    p = Problem([(2, 4, 3)])
    scores = (p.ema, p.segments, p.inverse_count, "taylor", 0.5)
    for name, value in {
        "grads": torch.zeros(3),
        "exp_avgs": torch.zeros(3),
        "exp_avg_sqs": torch.zeros(2, 4, 3).bfloat16(),
        "steps": torch.zeros((), dtype=torch.float64),
    }.items():
        q = p.copy()
        setattr(q, name, [value])
        state = (q.params, q.grads, q.exp_avgs, q.exp_avg_sqs, q.steps, q.groups, q.group_of)
        with pytest.raises(RuntimeError, match=rf"adamw_importance_: {name}\[0\]"):
            torch.ops.dmao.adamw_importance_(*state, None, *scores)


def test_refuses_to_be_differentiated() -> None:
    problem = Problem([(2, 4, 3)])
    problem.params[0].requires_grad_()
    with pytest.raises(RuntimeError, match="a step is not differentiable"):
        dmao_kernels.adamw_importance_(**vars(problem))
