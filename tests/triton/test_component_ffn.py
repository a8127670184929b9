"""component_ffn in Triton: against float64 and the native kernels, live lists, dropout, strides, determinism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import component_ffn
from dmao_kernels.ops._philox import keep_mask
from dmao_kernels.ops.component_ffn.reference import component_ffn_reference
from dmao_kernels.testing import assert_close_to_oracle, outputs_and_gradients
from tests.triton.common import DTYPES, assert_close, check_against_oracle, random_tensors, same_bits

# (tokens, d, components, unit width, d_out): both sides of tiles (32, 64) and vectors (4, 8, 16), and nothing.
SIZES = [
    (0, 5, 2, 3, 4),
    (1, 1, 1, 1, 1),
    (2, 3, 2, 5, 7),
    (7, 8, 3, 1, 9),
    (17, 17, 5, 13, 31),
    (33, 47, 4, 16, 49),
    (66, 64, 4, 24, 48),
    (130, 33, 2, 96, 65),
    (40, 24, 3, 50, 130),
    (70, 100, 2, 64, 20),
    (65, 10, 4, 0, 6),
    (5, 4, 0, 0, 3),
    (6, 0, 2, 4, 5),
    (6, 5, 2, 4, 0),
]


def make(
    device: str, tokens: int, d: int, components: int, width: int, d_out: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """x, w1, b1, w2, b2 with outputs of order one."""
    hidden = components * width
    shapes = [
        ((tokens, d), 1.0),
        ((hidden, d), max(d, 1) ** -0.5),
        ((hidden,), 0.5),
        ((d_out, hidden), max(hidden, 1) ** -0.5),
        ((d_out,), 0.5),
    ]
    return random_tensors(device, dtype, shapes)


def ids(device: str, *values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def seed_on(device: str) -> Tensor:
    return torch.tensor([0x1234_5678_9ABC_DEF], device=device)


def check(inputs: list[Tensor], live: Tensor | None = None, **options: Any) -> None:
    components, hidden = options["components"], inputs[1].shape[0]
    dead = torch.zeros(hidden, dtype=torch.bool, device=inputs[0].device)
    if live is not None and components:
        dead = torch.ones(components + 1, dtype=torch.bool, device=live.device)
        dead[live.long()] = False
        dead = dead[:components].repeat_interleave(hidden // components)

    def poison_dead(tensors: list[Tensor]) -> None:
        tensors[1][dead], tensors[2][dead], tensors[3][:, dead] = torch.nan, torch.nan, torch.nan

    # Few terms may cancel, and those of the peer be exact by chance.
    terms = min(inputs[0].shape)
    slack = 1.0 if terms >= 32 else 4.0 if terms >= 4 else 32.0
    _, grads = check_against_oracle(
        component_ffn, component_ffn_reference, inputs, live, slack=slack, prepare=poison_dead, **options
    )
    assert not grads[1][dead].any()
    assert not grads[2][dead].any()
    assert not grads[3][:, dead].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [13, 64])
def test_training_step(device, width, dtype):
    """All that is special at once: dead components, fillers, dropout, several tiles along every axis."""
    inputs = make(device, 70, 40, 5, width, 70, dtype)
    check(inputs, ids(device, 0, 2, 3, 5), components=5, p=0.3, seed=seed_on(device))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(device, size, dtype):
    inputs = make(device, *size, dtype)
    check(inputs, components=size[2])
    live = ids(device, *range(0, size[2], 2), size[2])
    check(inputs, live, components=size[2], p=0.3, seed=seed_on(device))


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
def test_activations(device, activation, dtype, p):
    inputs = make(device, 70, 24, 4, 40, 24, dtype)
    with torch.no_grad():
        inputs[0].mul_(4)  # reach the flat parts of the activation too
    check(inputs, components=4, activation=activation, p=p, seed=seed_on(device))


@pytest.mark.parametrize("live", [(), (0,), (0, 1, 2)])
def test_few_live_components(device, live):
    check(make(device, 40, 20, 3, 20, 20), ids(device, *live, 3, 3), components=3)


@pytest.mark.slow
def test_sums_over_several_spans_of_tokens(device):
    """Weight gradients take a second pass where tokens are many and tiles are few."""
    check(make(device, 1300, 16, 3, 16, 16), ids(device, 0, 2), components=3, p=0.1, seed=seed_on(device))
    check(make(device, 1300, 16, 3, 16, 16), components=3)


@pytest.mark.slow
@pytest.mark.parametrize("absent", [(2,), (4,), (2, 4)])
def test_absent_biases(device, absent):
    inputs: list[Any] = make(device, 35, 11, 3, 21, 13)
    for index in absent:
        inputs[index] = None
    check_against_oracle(component_ffn, component_ffn_reference, inputs, ids(device, 0, 2), components=3)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", range(5))
def test_only_the_gradient_that_is_wanted(device, wanted):
    inputs = make(device, 40, 12, 3, 20, 14)
    options: dict[str, Any] = {"components": 3, "p": 0.2, "seed": seed_on(device)}
    _, grads = outputs_and_gradients(component_ffn, *inputs, ids(device, 0, 2), **options)
    some = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(inputs)]
    _, found = outputs_and_gradients(component_ffn, *some, ids(device, 0, 2), **options)
    assert found.keys() == {wanted}
    assert torch.equal(found[wanted], grads[wanted])


@pytest.mark.parametrize("width", [16, 23])
def test_live_subset_equals_the_shrunk_layer(device, width):
    """Bit for bit: the same products in the same order, whatever fills up the list."""
    components, live = 7, (1, 2, 5)
    x, w1, b1, w2, b2 = make(device, 40, 40, components, width, 33)
    units = torch.tensor([unit for c in live for unit in range(c * width, (c + 1) * width)], device=device)
    grad = torch.randn(40, 33).to(device)
    shrunk = [x, w1[units].detach(), b1[units].detach(), w2[:, units].detach().contiguous(), b2]
    expected, shrunk_grads = outputs_and_gradients(
        component_ffn, *(tensor.requires_grad_() for tensor in shrunk), grad_output=grad
    )
    for filled in (0, 3):
        listed = ids(device, *live, *[components] * filled)
        y, grads = outputs_and_gradients(
            component_ffn, x, w1, b1, w2, b2, listed, components=components, grad_output=grad
        )
        pairs = [(y, expected), (grads[0], shrunk_grads[0]), (grads[4], shrunk_grads[4])]
        pairs += [(grads[i][units], shrunk_grads[i]) for i in (1, 2)]
        pairs += [(grads[3][:, units], shrunk_grads[3])]
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_leading_dimensions_and_strides(device):
    inputs = x, w1, b1, w2, b2 = make(device, 24, 10, 2, 12, 10)
    grad = torch.randn(24, 10).to(device)
    y, expected = outputs_and_gradients(component_ffn, *inputs, components=2, grad_output=grad)
    assert torch.equal(component_ffn(x.view(2, 3, 4, 10), w1, b1, w2, b2, components=2).flatten(0, 2), y)
    assert torch.equal(component_ffn(x[0], w1, b1, w2, b2, components=2), y[0])
    odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in inputs]
    odd[0] = x.detach().t().contiguous().t().requires_grad_()
    assert not any(tensor.is_contiguous() for tensor in odd)
    again, grads = outputs_and_gradients(component_ffn, *odd, components=2, grad_output=grad.t().contiguous().t())
    assert torch.equal(again, y)
    assert same_bits(list(grads.values()), list(expected.values()))
    ones, _ = outputs_and_gradients(component_ffn, *inputs, components=2)
    component_ffn(*inputs, components=2).sum().backward()  # a gradient of stride 0
    assert torch.equal(ones, y)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("live", [None, (0, 2, 3)])
@pytest.mark.parametrize("width", [37, 64])
def test_dropout_mask_is_the_reference_mask(device, width, live):
    """With relu, b1 = 1, w1 = 0 and w2 = identity the output is the mask, scaled by a power of two."""
    tokens, components, p = 37, 4, 0.5
    hidden = components * width
    y = component_ffn(
        torch.zeros(tokens, 3, device=device),
        torch.zeros(hidden, 3, device=device),
        torch.ones(hidden, device=device),
        torch.eye(hidden, device=device),
        None,
        None if live is None else ids(device, *live),
        components=components,
        p=p,
        seed=seed_on(device),
        activation="relu",
    )
    expected = keep_mask(seed_on(device), tokens, torch.arange(hidden, device=device), p) / (1 - p)
    for component in range(components):
        if live is not None and component not in live:
            expected[:, component * width : (component + 1) * width] = 0
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)


def test_agrees_with_the_native_kernels(device, native):
    inputs = make(device, 60, 30, 4, 20, 25)
    options: dict[str, Any] = {"components": 4, "p": 0.2, "activation": "gelu"}
    live, grad = ids(device, 1, 3, 4), torch.randn(60, 25)
    ours = outputs_and_gradients(
        component_ffn, *inputs, live, seed=seed_on(device), grad_output=grad.to(device), **options
    )
    with dmao_kernels.use_backend(native):
        theirs = outputs_and_gradients(
            component_ffn,
            *(tensor.detach().cpu().requires_grad_() for tensor in inputs),
            live.cpu(),
            seed=seed_on("cpu"),
            grad_output=grad,
            **options,
        )
    assert_close(ours[0].cpu(), theirs[0])
    for key, gradient in theirs[1].items():
        assert_close(ours[1][key].cpu(), gradient)


@pytest.mark.slow
def test_nan_and_infinity_go_where_pytorch_puts_them(device):
    x, w1, b1, w2, b2 = make(device, 20, 8, 2, 20, 8)
    with torch.no_grad():
        x[3, 1], x[11, 0] = torch.nan, torch.inf
    for activation in ("silu", "relu", "gelu"):
        ours = component_ffn(x, w1, b1, w2, b2, activation=activation)
        expected = component_ffn_reference(x, w1, b1, w2, b2, activation=activation)
        assert torch.equal(ours.isnan(), expected.isnan())
        assert ours[3].isnan().all()


def test_bits_do_not_change_when_run_again(device):
    inputs = make(device, 600, 16, 4, 16, 16, torch.bfloat16)
    options: dict[str, Any] = {"components": 4, "p": 0.2, "seed": seed_on(device)}
    once, twice = (outputs_and_gradients(component_ffn, *inputs, ids(device, 0, 3), **options) for _ in range(2))
    assert torch.equal(once[0], twice[0])
    assert same_bits(list(once[1].values()), list(twice[1].values()))


@pytest.mark.slow
def test_ids_out_of_range_read_nothing_out_of_bounds(device):
    """Garbage in, garbage out: but from the layer's own memory (the guard would see it)."""
    x, w1, b1, w2, b2 = make(device, 20, 8, 3, 20, 8)
    component_ffn(x, w1, b1, w2, b2, ids(device, -7, 1 << 30, 1, 3, 0), components=3).sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [4, 48, 384])
def test_real_sizes(device, width, dtype):
    components = 1536 // width
    inputs = make(device, 5000, 384, components, width, 384, dtype)
    live = torch.randperm(components)[: components * 2 // 3].sort().values.to(device, torch.int32)
    check(inputs, live, components=components, p=0.1, seed=seed_on(device))
    check(inputs, components=components)


@pytest.mark.gpu
def test_tf32_is_opt_in(device):
    inputs = make(device, 3000, 256, 8, 128, 256)
    truth, ieee = (component_ffn_reference(*(t.to(dtype) for t in inputs)) for dtype in (torch.float64, torch.float32))
    assert_close_to_oracle(component_ffn(*inputs), ieee, truth)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        fast = component_ffn(*inputs)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.testing.assert_close(fast.double(), truth, rtol=0, atol=1e-2)
