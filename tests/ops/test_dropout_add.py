"""dropout_add and dropout_add_layer_norm: against float64, odd sizes, mask, determinism, autograd, compilation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmao_kernels
from dmao_kernels import dropout_add, dropout_add_layer_norm
from dmao_kernels.ops._philox import keep_mask
from dmao_kernels.ops.dropout_add.reference import dropout_add_layer_norm_reference, dropout_add_reference
from dmao_kernels.testing import (
    Poison,
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)
from tests.ops.common import (
    BACKENDS,
    SEED,
    CountedGraphs,
    assert_threads_do_not_change_a_bit,
    native,
)

HALVES = (torch.bfloat16, torch.float16)
# dtypes of x and y
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]

# Both sides of vectors (4, 8, 16), the dropout group (128), several groups, a span of rows (64) and of threads.
SIZES = [
    (0, 5),
    (1, 1),
    (2, 3),
    (7, 8),
    (9, 16),
    (5, 17),
    (63, 31),
    (65, 127),
    (130, 129),
    (40, 257),
    (3, 2049),
    (2, 4500),
]

Function = Callable[..., Tensor]


def make(*shape: int, dtypes: tuple[torch.dtype, torch.dtype] = PAIRS[0]) -> list[Tensor]:
    """x, y, weight, bias."""
    x, y = (torch.randn(shape).to(dtype).requires_grad_() for dtype in dtypes)
    weight, bias = (torch.randn(shape[-1:]).requires_grad_() for _ in range(2))
    return [x, y, weight, bias]


def both_results(function: Callable[..., tuple[Tensor, Tensor]]) -> Function:
    """Sum and norm as one tensor, so that one gradient serves both."""

    def call(*arguments: Tensor, **options: Any) -> Tensor:
        return torch.stack(function(*arguments, **options))

    return call


ADD = (dropout_add, dropout_add_reference)
NORM = (both_results(dropout_add_layer_norm), both_results(dropout_add_layer_norm_reference))


def check_against_oracle(functions: tuple[Function, Function], inputs: list[Tensor], **options: Any) -> None:
    """Output and all gradients, by the house's rule, from poisoned memory."""
    ours, reference = functions
    poison = Poison()
    guarded = [poison.around(tensor) for tensor in inputs]
    with nan_filled_empty():
        grad = torch.randn(reference(*inputs, **options).shape)
        y, grads = outputs_and_gradients(ours, *guarded, grad_output=grad, **options)
    poison.check()
    same, same_grads = outputs_and_gradients(reference, *inputs, grad_output=grad, **options)
    truth, true_grads = outputs_and_gradients(
        reference, *to_float64(inputs), grad_output=grad.to(same.dtype), **options
    )
    assert_close_to_oracle(y, same, truth)
    assert grads.keys() == true_grads.keys()
    for key, gradient in true_grads.items():
        assert_close_to_oracle(grads[key], same_grads[key], gradient, name=f"gradient {key}")


@native
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size: tuple[int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    inputs = make(*size, dtypes=dtypes)
    for options in ({"p": 0.3, "seed": SEED}, {"p": 0.3, "seed": SEED, "scale": 0.5}, {"scale": -2.0}, {}):
        check_against_oracle(ADD, inputs[:2], **options)
        check_against_oracle(NORM, inputs, **options)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_alone(dtype: torch.dtype) -> None:
    functions = tuple(lambda y, f=f, **options: f(None, y, **options) for f in ADD)
    y = torch.randn(37, 300).to(dtype).requires_grad_()
    check_against_oracle(functions, [y], p=0.4, seed=SEED, scale=0.5)
    check_against_oracle(functions, [y], scale=0.5)


@native
@pytest.mark.parametrize(("offset", "spread"), [(1e4, 1.0), (0.0, 1e-4), (3.0, 0.0), (0.0, 1e15)])
def test_rows_that_are_hard_to_normalize(offset: float, spread: float) -> None:
    x, y, weight, bias = make(40, 203)
    with torch.no_grad():
        x.mul_(spread).add_(offset)
        y.mul_(spread)
    check_against_oracle(NORM, [x, y, weight, bias], eps=1e-3)


@native
def test_width_zero() -> None:
    total, norm = dropout_add_layer_norm(*make(3, 0), p=0.5, seed=SEED)
    assert total.shape == norm.shape == dropout_add(*make(3, 0)[:2]).shape == (3, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_eager_step(backend: str) -> None:
    x, y, weight, bias = make(20, 12)
    with dmao_kernels.use_backend(backend):
        total, norm = dropout_add_layer_norm(x, y, weight, bias, scale=0.5, eps=1e-3)
        torch.testing.assert_close(total, x + 0.5 * y)
        torch.testing.assert_close(norm, F.layer_norm(x + 0.5 * y, (12,), weight, bias, 1e-3))
        torch.testing.assert_close(dropout_add(x, y), x + y)
        torch.testing.assert_close(dropout_add(None, y, scale=3.0), 3 * y)


@native
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999, 1e-6, 1 - 1e-9])
def test_dropout_mask_is_the_reference_mask(p: float) -> None:
    for shape in ((37, 300), (2, 3, 2500), (129,)):
        mask = dropout_add(None, torch.ones(shape), p=p, seed=SEED) > 0
        rows = math.prod(shape[:-1])
        assert torch.equal(mask.view(rows, -1), keep_mask(SEED, rows, torch.arange(shape[-1]), p))


@native
def test_norm_drops_the_same_elements() -> None:
    x, y, weight, bias = make(37, 300)
    total, _ = dropout_add_layer_norm(x, y, weight, bias, p=0.3, seed=SEED, scale=0.5)
    assert torch.equal(total, dropout_add(x, y, p=0.3, seed=SEED, scale=0.5))


@native
def test_dropout_keeps_the_mean_and_follows_its_seed() -> None:
    y = torch.randn(64, 96)
    draws = torch.stack([dropout_add(None, y, p=0.3, seed=torch.tensor([seed])) for seed in range(200)])
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], dropout_add(None, y, p=0.3, seed=torch.tensor([0])))
    error = (draws.mean(0) - y) / (draws.std(0) / math.sqrt(200))
    assert error.abs().mean() < 1.0  # of a standard normal it is 0.8
    assert error.abs().max() < 6.0


@native
def test_rows_do_not_depend_on_each_other() -> None:
    """The first rows alone give the same bits, and NaN stays in its row."""
    x, y, weight, bias = make(70, 130)
    with torch.no_grad():
        x[7, 3] = torch.nan
    grad = torch.randn(2, 70, 130)
    options = {"p": 0.3, "seed": SEED}
    out, grads = outputs_and_gradients(NORM[0], x, y, weight, bias, grad_output=grad, **options)
    first = [tensor.detach()[:20].requires_grad_() for tensor in (x, y)]
    less, less_grads = outputs_and_gradients(NORM[0], *first, weight, bias, grad_output=grad[:, :20], **options)
    for whole, part in ((out[0], less[0]), (out[1], less[1]), (grads[0], less_grads[0]), (grads[1], less_grads[1])):
        torch.testing.assert_close(whole[:20], part, rtol=0, atol=0, equal_nan=True)
        assert whole[7].isnan().any()
        assert not torch.cat([whole[:7], whole[8:]]).isnan().any()


@native
def test_leading_dimensions_and_strides() -> None:
    x, y, weight, bias = make(24, 10)
    options = {"p": 0.3, "seed": SEED}
    flat = NORM[0](x, y, weight, bias, **options)
    split = NORM[0](x.view(2, 3, 4, 10), y.view(2, 3, 4, 10), weight, bias, **options)
    assert torch.equal(split.flatten(1, 3), flat)
    assert torch.equal(NORM[0](x[0], y[0], weight, bias, **options), flat[:, 0])
    odd = [x.detach().t().contiguous().t(), y.detach().repeat_interleave(2, 0)[::2]]
    odd += [tensor.detach().repeat_interleave(2)[::2] for tensor in (weight, bias)]
    assert not any(tensor.is_contiguous() for tensor in odd)
    odd = [tensor.requires_grad_() for tensor in odd]
    grad = torch.randn(10, 24, 2).permute(2, 1, 0)
    out, grads = outputs_and_gradients(NORM[0], *odd, grad_output=grad, **options)
    _, expected = outputs_and_gradients(NORM[0], x, y, weight, bias, grad_output=grad.contiguous(), **options)
    assert torch.equal(out, flat)
    assert all(torch.equal(grads[key], expected[key]) for key in expected)
    misaligned = torch.randn(241)[1:].view(24, 10)
    assert torch.equal(dropout_add(misaligned, y, **options), dropout_add(misaligned.clone(), y, **options))


@native
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_either_result_alone(p: float, scale: float) -> None:
    inputs = make(30, 40)
    for index in (0, 1):
        grads, expected = (
            torch.autograd.grad(function(*inputs, p=p, seed=SEED, scale=scale)[index].square().sum(), inputs[:2])
            for function in (dropout_add_layer_norm, dropout_add_layer_norm_reference)
        )
        torch.testing.assert_close(grads, expected)


@native
def test_only_what_needs_gradients_gets_them() -> None:
    for index in range(4):
        inputs = [tensor.detach() for tensor in make(30, 40)]
        inputs[index].requires_grad_()
        for functions in (NORM, ADD) if index < 2 else (NORM,):
            arguments = inputs if functions is NORM else inputs[:2]
            (grad,), (expected,) = (
                torch.autograd.grad(function(*arguments, p=0.3, seed=SEED).square().sum(), inputs[index])
                for function in functions
            )
            torch.testing.assert_close(grad, expected)


# --- Threads and instruction sets


_RUN = """
import torch
from tests.ops.common import SEED
from tests.ops.test_dropout_add import ADD, NORM, PAIRS, check_against_oracle, make
from tests.ops.test_dropout_add import test_dropout_mask_is_the_reference_mask as check_mask

torch.manual_seed(0)
check_mask(0.3)
for dtypes in PAIRS:
    for size in ((1, 1), (9, 31), (70, 129), (3, 2049)):
        inputs = make(*size, dtypes=dtypes)
        check_against_oracle(NORM, inputs, p=0.3, seed=SEED, scale=0.5)
        check_against_oracle(ADD, inputs[:2], p=0.3, seed=SEED, scale=0.5)
"""


@native
def test_every_instruction_set(run_on_capability: Callable[[str], None]) -> None:
    run_on_capability(_RUN)


@native
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_the_number_of_threads_does_not_change_a_bit(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    inputs = make(3000, 70, dtypes=dtypes)
    grad = torch.randn(2, 3000, 70)

    def compute() -> list[Tensor]:
        out, grads = outputs_and_gradients(NORM[0], *inputs, p=0.1, seed=SEED, grad_output=grad)
        return [out, *grads.values(), dropout_add(*inputs[:2], p=0.1, seed=SEED)]

    assert_threads_do_not_change_a_bit(compute)


# --- PyTorch's machinery


@native
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_opcheck(p: float) -> None:
    x, y, weight, bias = make(9, 6)
    seed = SEED if p else None
    torch.library.opcheck(torch.ops.dmao.dropout_add.default, (x, y, p, seed, 0.5))
    torch.library.opcheck(torch.ops.dmao.dropout_add.default, (None, y, p, seed, 1.0))
    operator = torch.ops.dmao.dropout_add_layer_norm.default
    torch.library.opcheck(operator, (x, y, weight, bias, p, seed, 0.5, 1e-5))
    total, _, statistics = (tensor.detach() for tensor in operator(x, y, weight, bias, p, seed, 0.5, 1e-5))
    for grad, need in ((torch.randn(9, 6), True), (None, False)):
        arguments = (grad, torch.randn(9, 6), total, weight.detach(), statistics, p, seed, 0.5, need, torch.bfloat16)
        torch.library.opcheck(torch.ops.dmao.dropout_add_layer_norm_backward.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_without_recompiling_for_new_lengths(backend: str) -> None:
    def call(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        total, norm = dropout_add_layer_norm(x, y, weight, bias, p=0.1, seed=seed)
        return dropout_add(total, norm, p=0.1, seed=seed + 1, scale=0.5).sin()

    graphs = CountedGraphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs)
    x, y, weight, bias = make(40, 8)
    with dmao_kernels.use_backend(backend):
        for rows in (40, 23, 31, 17, 9):
            arguments = (x[:rows], y[:rows], weight, bias, torch.tensor([rows]))
            torch.testing.assert_close(compiled(*arguments), call(*arguments))
    assert graphs.count <= 2  # one for the first shape, one for any


@native
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_compiled_training_gives_the_same_gradients(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(dropout_add_layer_norm, fullgraph=True, backend="aot_eager", dynamic=True)
    inputs, grad = make(30, 8, dtypes=dtypes), torch.randn(2, 30, 8)
    options = {"p": 0.3, "seed": SEED, "scale": 0.5}
    out, grads = outputs_and_gradients(NORM[0], *inputs, grad_output=grad, **options)
    other, other_grads = outputs_and_gradients(both_results(compiled), *inputs, grad_output=grad, **options)
    assert torch.equal(other, out)
    assert all(torch.equal(other_grads[key], grads[key]) for key in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: str) -> None:
    x, y, weight, bias = make(30, 8, dtypes=(torch.float32, torch.bfloat16))
    with dmao_kernels.use_backend(backend):
        expected = NORM[0](x, y, weight, bias, p=0.3, seed=SEED)
        with torch.autocast("cpu", torch.bfloat16):
            out = NORM[0](x, y, weight, bias, p=0.3, seed=SEED)
            assert F.layer_norm(x, (8,), weight, bias).dtype == (x + F.dropout(y)).dtype == torch.float32
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_in_bfloat16(backend: str) -> None:
    x, y, weight, bias = (tensor.detach().bfloat16().requires_grad_() for tensor in make(30, 8))
    with dmao_kernels.use_backend(backend):
        total, norm = dropout_add_layer_norm(x, y, weight, bias)
        grads = torch.autograd.grad(norm.float().square().sum(), (weight, bias))
    assert total.dtype == norm.dtype == grads[0].dtype == grads[1].dtype == torch.bfloat16


@pytest.mark.parametrize("dtypes", list(itertools.product((torch.float32, *HALVES), HALVES)), ids=str)
@pytest.mark.parametrize("own_weights", [True, False])
def test_half_precision_has_the_dtypes_of_the_contract(
    dtypes: tuple[torch.dtype, torch.dtype], own_weights: bool
) -> None:
    x, y, weight, bias = make(30, 8, dtypes=dtypes)
    weights = dtypes[0] if own_weights else torch.float32
    assert dropout_add(x, y, p=0.3, seed=SEED).dtype == dtypes[0]
    total, norm = dropout_add_layer_norm(x, y, weight.to(weights), bias.to(weights))
    assert total.dtype == norm.dtype == dtypes[0]
    grads = torch.autograd.grad((total + norm).float().sum(), (x, y))
    assert tuple(grad.dtype for grad in grads) == dtypes


@native
def test_second_derivatives() -> None:
    """dropout_add is linear and has them, the norm refuses."""
    x, y, weight, bias = make(5, 4)
    (grad,) = torch.autograd.grad(dropout_add(x, y, p=0.3, seed=SEED).pow(3).sum(), y, create_graph=True)
    (expected,) = torch.autograd.grad(dropout_add_reference(x, y, p=0.3, seed=SEED).pow(3).sum(), y, create_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(grad.square().sum(), (x, y)), torch.autograd.grad(expected.square().sum(), (x, y))
    )
    norm = dropout_add_layer_norm(x, y, weight, bias)[1]
    (grad,) = torch.autograd.grad(norm.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


# --- What is refused


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 4).double()}, "x must be float32, bfloat16 or float16, got float64"),
        ({"y": torch.zeros(3, 4).double()}, "y must be float32 or bfloat16 or float16, got float64"),
        ({"x": torch.zeros(3, 4).bfloat16()}, "y must be bfloat16 or float16, got float32"),
        ({"x": torch.tensor(1.0), "y": torch.tensor(1.0)}, r"y must be \[\.\.\., d\], got a scalar"),
        ({"y": torch.zeros(1, 4)}, r"y must have x's shape \[3, 4\], got \[1, 4\]"),
        ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
        ({"p": math.nan}, r"p must be in \[0, 1\), got nan"),
        ({"p": 0.1}, r"seed must be int64 \[1\] when p > 0, got None"),
        ({"p": 0.1, "seed": torch.tensor(1)}, r"seed must be int64 \[1\] when p > 0, got int64 \[\]"),
        ({"x": torch.zeros(3, 4, device="meta")}, "x must be on y's device cpu, got meta"),
    ],
)
def test_wrong_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    x, y, weight, bias = (tensor.detach() for tensor in make(3, 4))
    options = {"x": x, "y": y, **changes}
    with dmao_kernels.use_backend(backend):
        with pytest.raises(ValueError, match=f"dropout_add: {message}"):
            dropout_add(**options)
        with pytest.raises(ValueError, match=f"dropout_add_layer_norm: {message}"):
            dropout_add_layer_norm(**options, weight=weight, bias=bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(5)}, r"weight must be float32 \[4\], got float32 \[5\]"),
        ({"weight": torch.zeros(4).double()}, r"weight must be float32 \[4\], got float64 \[4\]"),
        ({"bias": torch.zeros(1, 4)}, r"bias must be as weight float32 \[4\], got float32 \[1, 4\]"),
        ({"bias": torch.zeros(4).bfloat16()}, r"bias must be as weight float32 \[4\], got bfloat16 \[4\]"),
        ({"bias": torch.zeros(4, device="meta")}, "bias must be on x's device cpu, got meta"),
    ],
)
def test_wrong_parameters(backend: str, changes: dict[str, Any], message: str) -> None:
    x, y, weight, bias = (tensor.detach() for tensor in make(3, 4))
    with dmao_kernels.use_backend(backend), pytest.raises(ValueError, match=message):
        dropout_add_layer_norm(**{"x": x, "y": y, "weight": weight, "bias": bias, **changes})


@native
def test_operators_check_what_could_be_read_out_of_bounds() -> None:
    x, y, weight, bias = (tensor.detach() for tensor in make(3, 4))
    operators, rest = torch.ops.dmao, (0.0, None, 1.0)
    statistics = torch.zeros(3, 2)
    backward = operators.dropout_add_layer_norm_backward
    for call, message in (
        (lambda: operators.dropout_add(x, y[:2], *rest), "y must have x's shape"),
        (lambda: operators.dropout_add(x, y, 0.5, None, 1.0), "seed is needed"),
        (lambda: operators.dropout_add(x.bfloat16(), y, *rest), "y must have x's dtype or be bfloat16"),
        (lambda: operators.dropout_add_layer_norm(x, y, weight[:3], bias, *rest, 1e-5), r"weight must be \[4\]"),
        (lambda: operators.dropout_add_layer_norm(x, y, weight, bias[:3], *rest, 1e-5), r"bias must be \[4\]"),
        (lambda: backward(x[:2], y, x, weight, statistics, *rest, True, x.dtype), "grad_sum must have the shape"),
        (lambda: backward(None, y[:2], x, weight, statistics, *rest, True, x.dtype), "grad_norm must have the shape"),
        (lambda: backward(None, y, x, weight, statistics[:2], *rest, True, x.dtype), r"statistics must be \[3, 2\]"),
        (lambda: backward(None, y, x, weight, statistics, *rest, True, torch.float64), "y must be float32 or bfloat16"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
