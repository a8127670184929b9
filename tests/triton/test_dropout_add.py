"""dropout_add and dropout_add_layer_norm in Triton: against float64, the mask, the native kernels, determinism."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dmao_kernels import dropout_add, dropout_add_layer_norm, use_backend
from dmao_kernels.ops._philox import keep_mask
from dmao_kernels.ops.dropout_add.reference import dropout_add_layer_norm_reference, dropout_add_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.triton.common import DTYPES, check_against_oracle, random_tensors, same_bits

SHAPES = [(1, 1), (3, 5, 37), (70, 64), (33, 128), (5, 300), (2, 1025)]
OPTIONS: list[dict[str, Any]] = [{"p": 0.0, "scale": 1.0}, {"p": 0.3, "scale": 0.5}]


def seed_on(device: str) -> Tensor:
    return torch.tensor([0x1234_5678_9ABC_DEF], device=device)


def norm_inputs(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
    return random_tensors(device, dtype, [(shape, 1.0), (shape, 1.0), (shape[-1:], 1.0), (shape[-1:], 1.0)])


def both(op: Any, which: int) -> Any:
    """One of the two results of the norm, or their sum: each has its gradient."""
    return lambda *tensors, **options: sum(op(*tensors, **options)) if which == 2 else op(*tensors, **options)[which]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_dropout_add(device: str, dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    inputs, options = random_tensors(device, dtype, [(shape, 1.0), (shape, 1.0)]), {**options, "seed": seed_on(device)}
    check_against_oracle(dropout_add, dropout_add_reference, inputs, **options)
    alone, reference = partial(dropout_add, None), partial(dropout_add_reference, None)
    check_against_oracle(alone, reference, inputs[1:], **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_norm(device: str, dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    inputs = norm_inputs(device, dtype, shape)
    which = 1 if shape[-1] > 1 else 0
    op, reference = both(dropout_add_layer_norm, which), both(dropout_add_layer_norm_reference, which)
    check_against_oracle(op, reference, inputs, seed=seed_on(device), slack=2.0, **options)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("frozen", [[], [0], [1], [2, 3]])
def test_gradients_that_are_wanted(device: str, which: int, frozen: list[int]) -> None:
    inputs = norm_inputs(device, torch.float32, (9, 40))
    for index in frozen:
        inputs[index].requires_grad_(False)
    op, reference = both(dropout_add_layer_norm, which), both(dropout_add_layer_norm_reference, which)
    check_against_oracle(op, reference, inputs, p=0.2, seed=seed_on(device))


@pytest.mark.parametrize("width", [1, 63, 64, 65, 127, 129, 400])
def test_mask(device: str, width: int) -> None:
    ones = torch.ones(9, width, device=device)
    dropped = dropout_add(None, ones, p=0.4, seed=seed_on(device)) == 0
    kept = keep_mask(seed_on(device), 9, torch.arange(width, device=device), 0.4)
    assert torch.equal(dropped, ~kept)
    zeros = torch.zeros_like(ones)
    total, _ = dropout_add_layer_norm(zeros, ones, ones[0], ones[0], p=0.4, seed=seed_on(device))
    assert torch.equal(total == 0, ~kept)


def test_dropped_elements_count_as_zero_times_y(device: str) -> None:
    y = torch.full((4, 100), torch.nan, device=device)
    assert dropout_add(None, y, p=0.5, seed=seed_on(device)).isnan().all()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_sum_in_float32_with_branches_in_half_precision(device: str, low: torch.dtype) -> None:
    x, y, weight, bias = norm_inputs(device, torch.float32, (5, 33))
    y = y.detach().to(low).requires_grad_()
    options = {"p": 0.3, "seed": seed_on(device), "scale": 0.5}
    results = {}
    for backend in ("triton", "reference"):
        with use_backend(backend):
            total, norm = dropout_add_layer_norm(x, y, weight, bias, **options)
        grads = torch.autograd.grad((total + norm.square()).sum(), (x, y))
        assert grads[1].dtype == low
        results[backend] = (total, norm, *grads)
    torch.testing.assert_close(results["triton"], results["reference"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)])
def test_as_the_native_kernels(device: str, native: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, y, weight, bias = (t.detach() for t in norm_inputs(device, dtypes[0], (33, 130)))
    inputs = [t.requires_grad_() for t in (x, y.to(dtypes[1]), weight, bias)]

    def run(inputs: list[Tensor]) -> list[Tensor]:
        options = {"p": 0.25, "scale": 0.5, "seed": seed_on(inputs[0].device.type)}
        total, norm = dropout_add_layer_norm(*inputs, **options)
        (total * 0.5 + norm * norm).sum().backward()
        return [total, norm, dropout_add(*inputs[:2], **options), *(t.grad for t in inputs)]

    ours = run(inputs)
    with use_backend(native):
        theirs = run([t.detach().cpu().requires_grad_() for t in inputs])
    slack = 1e-4 if dtypes[0] == dtypes[1] == torch.float32 else 0.03
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=slack, atol=slack)


def test_twice_the_same_bits_and_any_strides(device: str) -> None:
    def run(inputs: list[Tensor]) -> list[Tensor]:
        op = both(dropout_add_layer_norm, 2)
        y, grads = outputs_and_gradients(op, *inputs, grad_output=grad, p=0.1, seed=seed_on(device))
        return [y, *grads.values()]

    grad = torch.randn(300, 20, device=device)
    inputs = norm_inputs(device, torch.float32, (300, 20))
    ours = run(inputs)
    assert same_bits(ours, run(inputs))
    other = [t.detach().t().contiguous().t().requires_grad_() for t in inputs[:2]]
    assert same_bits(ours, run([*other, *inputs[2:]]))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 5)])
def test_nothing(device: str, shape: tuple[int, ...]) -> None:
    inputs = norm_inputs(device, torch.float32, shape)
    total, norm = dropout_add_layer_norm(*inputs)
    assert total.shape == norm.shape == shape
    (total.sum() + norm.sum() + dropout_add(*inputs[:2], p=0.5, seed=seed_on(device)).sum()).backward()
    assert not inputs[2].grad.any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [144, 512, 1024, 5000, 20000])
def test_real_sizes(device: str, dtype: torch.dtype, width: int) -> None:
    inputs = norm_inputs(device, dtype, (2_000_000 // width, width))
    options = {"p": 0.1, "scale": 0.5, "seed": seed_on(device)}
    op, reference = both(dropout_add_layer_norm, 1), both(dropout_add_layer_norm_reference, 1)
    check_against_oracle(op, reference, inputs, slack=2.0, **options)
    check_against_oracle(dropout_add, dropout_add_reference, inputs[:2], **options)
