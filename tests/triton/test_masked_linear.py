"""masked_linear in Triton: against float64 and the native kernels, masks, strides, determinism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, masked_linear
from dmao_kernels.block_mask import BLOCK_SIZES
from dmao_kernels.ops.masked_linear import LINEAR_ACTIVATIONS
from dmao_kernels.ops.masked_linear.reference import masked_linear_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.triton.common import (
    DTYPES,
    assert_close,
    check_against_oracle,
    multiplies_in_tf32,
    random_tensors,
    same_bits,
)

# (tokens, d, d_out): both sides of tiles (32, 64) and vectors (4, 8, 16), and nothing.
SIZES = [
    (0, 5, 4),
    (1, 1, 2),
    (2, 3, 8),
    (7, 8, 10),
    (17, 17, 30),
    (33, 47, 50),
    (65, 64, 48),
    (40, 129, 98),
    (40, 24, 130),
    (3, 200, 2),
    (6, 0, 4),
    (6, 5, 0),
]


def make(device: str, tokens: int, d: int, d_out: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, w, b with outputs of order one."""
    return random_tensors(device, dtype, [((tokens, d), 1.0), ((d_out, d), max(d, 1) ** -0.5), ((d_out,), 0.5)])


def random_mask(w: Tensor, block: int, density: float = 0.5, *, static: bool = False) -> BlockMask:
    full = BlockMask.full(w, block)
    return BlockMask.from_dense((torch.rand(full.rows, full.columns) < density).to(w.device), block, static=static)


def check(inputs: list[Any], mask: BlockMask | None = None, activation: str = "none") -> None:
    dead = None if mask is None else ~mask.elements(*inputs[1].shape)

    def poison_dead(tensors: list[Tensor]) -> None:
        if dead is not None:
            tensors[1][dead] = torch.nan

    # Few terms may cancel, and those of the peer be exact by chance.
    terms = min(inputs[0].shape)
    slack = 2.0 if terms >= 32 else 4.0 if terms >= 4 else 32.0
    _, grads = check_against_oracle(
        masked_linear,
        masked_linear_reference,
        inputs,
        mask,
        slack=slack,
        prepare=poison_dead,
        activation=activation,
    )
    if dead is not None:
        assert not grads[1][dead].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "activation"), [(0, "glu"), (48, "silu"), (16, "glu")])
def test_training_step(device, block, activation, dtype):
    inputs = make(device, 70, 130, 140, dtype)
    check(inputs, random_mask(inputs[1], block, static=True) if block else None, activation)


def test_relu_hands_on_the_gradient_of_nan(device):
    x = torch.tensor([[torch.nan, 1.0]], device=device, requires_grad=True)
    masked_linear(x, torch.eye(2, device=device), activation="relu").sum().backward()
    assert x.grad.tolist() == [[1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(device, size, dtype):
    inputs = make(device, *size, dtype)
    check(inputs)
    check(inputs, None, "glu")
    for block in (16, 48, 64):
        check(inputs, random_mask(inputs[1], block), "glu")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", LINEAR_ACTIVATIONS)
@pytest.mark.parametrize("block", [0, 32, 80])
def test_activations(device, block, activation, dtype):
    if activation == "relu" and dtype == torch.float32 and multiplies_in_tf32():
        pytest.skip("TF32 takes some inputs across the corner of relu")
    inputs = make(device, 40, 100, 164, dtype)
    with torch.no_grad():
        inputs[0].mul_(4)  # reach the flat parts of the activation too
    check(inputs, random_mask(inputs[1], block) if block else None, activation)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_all_blocks(device, block):
    inputs = make(device, 40, 3 * block - 5, 2 * block + 3)
    check(inputs, random_mask(inputs[1], block))


@pytest.mark.parametrize("grid", ["empty", "full", "one", "row", "column"])
def test_extreme_masks(device, grid):
    inputs = make(device, 35, 150, 100)
    live = torch.zeros(4, 5, dtype=torch.bool, device=device)
    if grid == "full":
        live[:] = True
    elif grid == "one":
        live[3, 4] = True  # the partial block at the corner
    elif grid == "row":
        live[1] = True
    elif grid == "column":
        live[:, 2] = True
    for static in (False, True):
        check(inputs, BlockMask.from_dense(live, 32, static=static), "silu")


@pytest.mark.slow
def test_sums_over_several_spans_of_tokens(device):
    inputs = make(device, 1300, 30, 20)
    check(inputs)
    check(inputs, random_mask(inputs[1], 16), "silu")


@pytest.mark.slow
def test_a_full_mask_is_no_mask(device):
    """Bit for bit where a tile of the one is a tile of the other."""
    inputs = make(device, 40, 128, 128)
    for activation in ("none", "gelu"):
        results = [
            outputs_and_gradients(masked_linear, *inputs, mask, activation=activation)
            for mask in (None, BlockMask.full(inputs[1], 64))
        ]
        torch.testing.assert_close(results[0][0], results[1][0])
        for key in results[0][1]:
            torch.testing.assert_close(results[0][1][key], results[1][1][key])


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, 32])
def test_only_the_gradient_that_is_wanted(device, block):
    inputs = make(device, 40, 50, 60)
    mask = random_mask(inputs[1], block) if block else None
    _, grads = outputs_and_gradients(masked_linear, *inputs, mask, activation="silu")
    for wanted in range(3):
        some = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(inputs)]
        _, found = outputs_and_gradients(masked_linear, *some, mask, activation="silu")
        assert found.keys() == {wanted}
        assert torch.equal(found[wanted], grads[wanted])
    assert torch.equal(masked_linear(inputs[0], inputs[1], mask=mask), masked_linear(inputs[0], inputs[1], None, mask))


@pytest.mark.slow
def test_leading_dimensions_and_strides(device):
    inputs = x, w, b = make(device, 24, 40, 36)
    mask = random_mask(w, 16)
    y, expected = outputs_and_gradients(masked_linear, *inputs, mask, activation="relu")
    assert torch.equal(masked_linear(x.view(2, 3, 4, 40), w, b, mask, activation="relu").flatten(0, 2), y)
    assert torch.equal(masked_linear(x[0], w, b, mask, activation="relu"), y[0])
    odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in inputs]
    again, grads = outputs_and_gradients(masked_linear, *odd, mask, activation="relu")
    assert torch.equal(again, y)
    assert same_bits(list(grads.values()), list(expected.values()))
    wide = torch.full((24, 100), torch.nan, device=device)
    wide[:, 30:70] = x.detach()
    assert torch.equal(masked_linear(wide[:, 30:70], w, b, mask, activation="relu"), y)


def test_agrees_with_the_native_kernels(device, native):
    inputs = make(device, 60, 100, 96)
    mask, grad = random_mask(inputs[1], 32), torch.randn(60, 96)
    ours = outputs_and_gradients(masked_linear, *inputs, mask, activation="gelu", grad_output=grad.to(device))
    with dmao_kernels.use_backend(native):
        leaves = [tensor.detach().cpu().requires_grad_() for tensor in inputs]
        theirs = outputs_and_gradients(masked_linear, *leaves, mask.to("cpu"), activation="gelu", grad_output=grad)
    assert_close(ours[0].cpu(), theirs[0])
    for key, gradient in theirs[1].items():
        assert_close(ours[1][key].cpu(), gradient)


def test_bits_do_not_change_when_run_again(device):
    inputs = make(device, 600, 40, 40, torch.bfloat16)
    mask = random_mask(inputs[1], 16)
    once, twice = (outputs_and_gradients(masked_linear, *inputs, mask, activation="silu") for _ in range(2))
    assert torch.equal(once[0], twice[0])
    assert same_bits(list(once[1].values()), list(twice[1].values()))


@pytest.mark.slow
def test_lists_out_of_range_read_nothing_out_of_bounds(device):
    """Garbage in, garbage out: but from the layer's own memory (the guard would see it)."""
    x, w, b = make(device, 20, 64, 64)

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    mask = BlockMask(32, 2, 2, numbers(-3, 9, 1), numbers(-1, 7), numbers(1, 0, 99), numbers(1 << 30, 0))
    masked_linear(x, w, b, mask, activation="silu").sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [0, 16, 48, 64, 128])
def test_real_sizes(device, block, dtype):
    inputs = make(device, 5000, 512, 1024, dtype)
    for activation in ("none", "glu"):
        check(inputs, random_mask(inputs[1], block, 0.3) if block else None, activation)
