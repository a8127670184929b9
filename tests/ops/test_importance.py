"""importance_: against float64, odd sizes, determinism, what is refused."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels.ops.importance.reference import METRICS
from dmao_kernels.testing import Poison, assert_close_to_oracle, to_float64
from tests.ops.common import BACKENDS, assert_passes_under, assert_threads_do_not_change_a_bit, native

# (repeats, components, run): both sides of a vector, of the short-run rule (64), of the float spans (4096
# values, 64 rows) and of a chunk (65536 elements).
SHAPES = [
    (1, 1, 1),
    (1, 4, 1),
    (1, 17, 1),
    (3, 5, 7),
    (130, 3, 5),
    (2, 4, 63),
    (2, 4, 64),
    (2, 3, 65),
    (384, 4, 37),
    (1, 5, 4097),
    (3, 2, 70000),
    (1, 5000, 1),
    (2, 70001, 1),
    (20, 6000, 2),
    (5000, 2, 1),
    (4, 1, 300),
]


class Problem:
    """Random tensors of given (repeats, components, run), with one component range per tensor."""

    def __init__(
        self,
        shapes: list[tuple[int, int, int]],
        weight_dtype: torch.dtype = torch.float32,
        grad_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weights = [torch.randn(shape).to(weight_dtype) for shape in shapes]
        self.grads = [torch.randn(shape).to(grad_dtype) for shape in shapes]
        rows, counts, first = [], [], 0
        for index, (repeats, components, run) in enumerate(shapes):
            rows.append([index, repeats, components, run, first])
            counts += [repeats * run] * components
            first += components
        self.segments = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
        self.inverse_count = 1.0 / torch.tensor(counts, dtype=torch.float32)
        self.ema = torch.rand(first)

    def run(self, backend: str, metric: str = "taylor", beta: float = 0.9) -> Tensor:
        ema = self.ema.clone()
        with dmao_kernels.use_backend(backend):
            dmao_kernels.importance_(ema, self.weights, self.grads, self.segments, self.inverse_count, metric, beta)
        return ema

    def oracle(self, metric: str = "taylor", beta: float = 0.9) -> Tensor:
        """By the definition, component by component, in float64."""
        ema = self.ema.double()
        for index, _, components, _, first in self.segments.tolist():
            weight, grad = to_float64(self.weights[index]), to_float64(self.grads[index])
            entries = {
                "taylor": (weight * grad).abs(),
                "gradient": grad.abs(),
                "magnitude": weight.abs(),
                "signed": weight * grad,
            }[metric]
            for component in range(components):
                mean = entries[:, component].mean()
                ema[first + component] = beta * ema[first + component] + (1 - beta) * mean
        return ema


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_needs_the_old_averages_notices(backend: str) -> None:
    problem, factor = Problem([(2, 4, 3)]), torch.ones(4, requires_grad=True)
    loss = (problem.ema * factor).sum()
    with torch.no_grad(), dmao_kernels.use_backend(backend):
        dmao_kernels.importance_(problem.ema, problem.weights, problem.grads, problem.segments, problem.inverse_count)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@native
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] <= 100], ids=str)
def test_oracle(shape: tuple[int, int, int], metric: str) -> None:
    problem = Problem([shape])
    assert_close_to_oracle(problem.run("cpu", metric), problem.run("reference", metric), problem.oracle(metric))


@native
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_oracle_of_each_dtype(metric: str, weight_dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    problem = Problem([(3, 5, 7), (2, 4, 99), (1, 20, 1), (70, 3, 5)], weight_dtype, grad_dtype)
    assert_close_to_oracle(problem.run("cpu", metric), problem.run("reference", metric), problem.oracle(metric))


@native
@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512", "avx512_bf16"])
def test_oracle_under_each_capability(
    capability: str, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert_passes_under(capability, run_python, __file__, "oracle and not capability")


@native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_agree(shape: tuple[int, int, int]) -> None:
    problem = Problem([shape, (2, 3, 4)])
    torch.testing.assert_close(problem.run("cpu"), problem.run("reference"), rtol=1e-5, atol=1e-7)


@native
def test_finest_granularity() -> None:
    """The 13,896 components of the published models' finest cut, several tensors each."""
    problem = Problem([(1, 13896, 33)])
    bias, bias_grad = torch.randn(13896), torch.randn(13896)
    problem.weights.append(bias)
    problem.grads.append(bias_grad)
    problem.segments = torch.cat([problem.segments, torch.tensor([[1, 1, 13896, 1, 0]])])
    problem.inverse_count.fill_(1 / 34)
    entries = (problem.weights[0].double() * problem.grads[0].double()).abs().sum((0, 2))
    mean = (entries + (bias.double() * bias_grad.double()).abs()) / 34
    expected = 0.9 * problem.ema.double() + 0.1 * mean
    assert_close_to_oracle(problem.run("cpu"), problem.run("reference"), expected)


@native
def test_bits_do_not_depend_on_threads() -> None:
    problem = Problem([(384, 4, 384), (1, 4, 147456), (40, 1000, 3), (1, 7, 1)])
    assert_threads_do_not_change_a_bit(lambda: [problem.run("cpu")])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_gradient_keeps_that_component_only(backend: str, bad: float) -> None:
    problem = Problem([(2, 4, 70), (1, 5, 1)])
    expected = problem.run(backend)
    problem.grads[0][1, 2, 3] = bad
    expected[2] = problem.ema[2]
    assert torch.equal(problem.run(backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_gradient_is_skipped(backend: str) -> None:
    problem = Problem([(2, 4, 3), (1, 5, 1)])
    expected = problem.run(backend)
    problem.grads[1] = torch.empty(0)
    expected[4:] = problem.ema[4:]
    assert torch.equal(problem.run(backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_magnitude_needs_no_gradient(backend: str) -> None:
    problem = Problem([(2, 4, 3)])
    expected = problem.run(backend, "magnitude")
    problem.grads = [torch.empty(0)]
    assert torch.equal(problem.run(backend, "magnitude"), expected)
    assert not torch.equal(expected, problem.ema)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shapes", [[], [(3, 0, 4)], [(0, 2, 4)], [(3, 0, 4), (2, 2, 2), (0, 0, 0)]], ids=str)
def test_nothing_to_score(backend: str, shapes: list[tuple[int, int, int]]) -> None:
    problem = Problem(shapes)
    expected = problem.oracle().float()  # NaN for a mean over nothing, where the average stays
    torch.testing.assert_close(problem.run(backend), expected.where(expected.isfinite(), problem.ema))


@pytest.mark.parametrize("backend", BACKENDS)
def test_segments_of_one_component_add_up(backend: str) -> None:
    """Cutting a tensor in two tensors of half the repeats changes nothing."""
    whole = Problem([(6, 4, 5)])
    halves = Problem([(6, 4, 5)])
    halves.ema, halves.inverse_count = whole.ema, whole.inverse_count
    halves.weights = [whole.weights[0][:3].clone(), whole.weights[0][3:].clone()]
    halves.grads = [whole.grads[0][:3].clone(), whole.grads[0][3:].clone()]
    halves.segments = torch.tensor([[0, 3, 4, 5, 0], [1, 3, 4, 5, 0]])
    torch.testing.assert_close(halves.run(backend), whole.run(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_tensors(backend: str) -> None:
    problem = Problem([(4, 3, 6)])
    expected = problem.run(backend)
    problem.weights = [problem.weights[0].transpose(0, 2).contiguous().transpose(0, 2)]
    problem.grads = [problem.grads[0].transpose(0, 1).contiguous().transpose(0, 1)]
    assert not problem.grads[0].is_contiguous()
    assert torch.equal(problem.run(backend), expected)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 17, 1), (3, 5, 7), (2, 3, 65)], ids=str)
def test_stays_inside_its_tensors(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    problem = Problem([shape], dtype, dtype)
    expected = problem.run("cpu")
    poison = Poison()
    problem.weights = [poison.around(problem.weights[0])]
    problem.grads = [poison.around(problem.grads[0])]
    ema = poison.around(problem.ema)
    dmao_kernels.importance_(
        ema, problem.weights, problem.grads, problem.segments, poison.around(problem.inverse_count), beta=0.9
    )
    poison.check()
    assert torch.equal(ema, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_in_full(backend: str) -> None:
    problem = Problem([(2, 4, 3), (1, 5, 1)])

    def step(ema: Tensor, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        with torch.no_grad():
            dmao_kernels.importance_(ema, weights, grads, problem.segments, problem.inverse_count, beta=0.9)
        return ema + 1

    expected = problem.run(backend)
    with dmao_kernels.use_backend(backend):
        result = torch.compile(step, fullgraph=True, backend="aot_eager")(problem.ema, problem.weights, problem.grads)
    assert torch.equal(problem.ema, expected)
    assert torch.equal(result, expected + 1)


@native
def test_opcheck() -> None:
    problem = Problem([(2, 4, 3), (1, 5, 1)])
    arguments = (problem.weights, problem.grads, problem.segments, problem.inverse_count, "signed", 0.5)
    torch.library.opcheck(torch.ops.dmao.importance_.default, (problem.ema, *arguments))


REFUSED = [
    ("ema", torch.zeros(4, dtype=torch.float64), "ema must be contiguous float32"),
    ("ema", torch.zeros(5), "inverse_count must have as many elements as ema"),
    ("ema", torch.zeros(8)[::2], "ema must be contiguous float32"),
    ("inverse_count", torch.zeros(4, 1), "inverse_count must be contiguous float32"),
    ("segments", torch.zeros(1, 5), r"segments must be int64 \[n, 5\], got float32 \[1, 5\]"),
    ("segments", torch.zeros(1, 4, dtype=torch.int64), r"segments must be int64 \[n, 5\]"),
    (
        "weights",
        [torch.zeros(2, 4, 3, dtype=torch.float64)],
        r"weights\[0\] must be float32, bfloat16 or float16, got float64",
    ),
    (
        "grads",
        [torch.zeros(2, 4, 3, dtype=torch.int16)],
        r"grads\[0\] must be float32, bfloat16 or float16, got int16",
    ),
    ("grads", [torch.zeros(2, 4, 2)], r"grads\[0\] must be empty or have the shape of weights\[0\]"),
    ("grads", [], "got 1 weights but 0 grads"),
    ("grads", [torch.zeros(2, 4, 3, device="meta")], r"grads\[0\] must be on ema's device cpu, got meta"),
    ("inverse_count", torch.ones(4, device="meta"), "inverse_count must be on ema's device cpu, got meta"),
    ("metric", "taylour", "metric must be one of taylor, gradient, magnitude, signed, got 'taylour'"),
    ("beta", 1.5, r"beta must be in \[0, 1\], got 1.5"),
    ("beta", float("nan"), r"beta must be in \[0, 1\], got nan"),
]


@pytest.mark.parametrize(("argument", "value", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_argument(argument: str, value: object, message: str) -> None:
    problem = Problem([(2, 4, 3)])
    arguments = {**vars(problem), argument: value}
    with pytest.raises(ValueError, match=f"^importance_: {message}"):
        dmao_kernels.importance_(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2, 4, 3, 0], "names tensor 1 of 1"),
        ([-1, 2, 4, 3, 0], "names tensor -1 of 1"),
        ([0, 2, 4, 4, 0], r"is 2 x 4 x 4, but weights\[0\] has 24 elements"),
        ([0, 0, 4, 4, 0], r"is 0 x 4 x 4, but weights\[0\] has 24 elements"),
        ([0, -2, -4, 3, 0], "has a negative"),
        ([0, 2**62, 4, 2**62, 0], r"but weights\[0\] has 24 elements"),
        ([0, 2, 4, 3, 1], "holds components 1 to 4, but ema has 4"),
        ([0, 2, 4, 3, -1], "holds components -1 to 2, but ema has 4"),
        ([0, 2, 4, 3, 2**63 - 1], "but ema has 4"),
    ],
    ids=str,
)
def test_wrong_segment_changes_nothing(backend: str, row: list[int], message: str) -> None:
    problem = Problem([(2, 4, 3)])
    problem.segments = torch.tensor([[0, 2, 4, 3, 0], row])
    before = problem.ema.clone()
    run = functools.partial(
        dmao_kernels.importance_,
        *(problem.ema, problem.weights, problem.grads, problem.segments, problem.inverse_count),
    )
    with dmao_kernels.use_backend(backend), pytest.raises(RuntimeError, match=message):
        run()
    assert torch.equal(problem.ema, before)


@native
def test_operator_checks_its_own_arguments() -> None:
    """torch.ops can be called without the checks of the public function."""
    problem = Problem([(2, 4, 3)])
    half = [weight.half() for weight in problem.weights]
    with pytest.raises(RuntimeError, match=r"weights\[0\] must be float32 or bfloat16, got Half"):
        torch.ops.dmao.importance_(
            problem.ema, half, problem.grads, problem.segments, problem.inverse_count, "taylor", 0.5
        )
    short = [torch.zeros(3)]
    with pytest.raises(RuntimeError, match=r"grads\[0\] has 3 elements, but its weight has 24"):
        torch.ops.dmao.importance_(
            problem.ema, problem.weights, short, problem.segments, problem.inverse_count, "taylor", 0.5
        )


def test_refuses_to_be_differentiated() -> None:
    problem = Problem([(2, 4, 3)])
    problem.weights[0].requires_grad_()
    arguments = (problem.ema, problem.weights, problem.grads, problem.segments, problem.inverse_count)
    with pytest.raises(RuntimeError, match="scores are not differentiable"):
        dmao_kernels.importance_(*arguments)
    with torch.no_grad():
        dmao_kernels.importance_(*arguments)
