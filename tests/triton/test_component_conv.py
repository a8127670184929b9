"""component_conv in Triton: against float64 and the native kernels, live lists, weighted statistics, determinism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmao_kernels import component_conv, use_backend
from dmao_kernels.ops.component_conv.reference import component_conv_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.triton.common import DTYPES, check_against_oracle, random_tensors, same_bits

# (lengths, frames, components, channels of a component, k): both sides of tiles (16 rows, 64 channels) and nothing.
SIZES = [
    ([1], 1, 1, 1, 1),
    ([17, 0, 5], 20, 3, 7, 9),
    ([33, 16], 33, 5, 16, 3),
    ([20], 20, 2, 41, 31),
    ([3, 6], 6, 3, 0, 3),
    ([0, 0], 0, 2, 4, 3),
    ([], 4, 2, 4, 3),
]


def make(
    device: str, lengths: list[int], frames: int, components: int, width: int, taps: int, dtype: torch.dtype
) -> list[Any]:
    """x, weight, bias, norm_weight, norm_bias."""
    c = components * width
    shapes = [
        ((len(lengths), frames, 2 * c), 1.0),
        ((c, taps), taps**-0.5),
        ((c,), 1.0),
        ((c,), 1.0),
        ((c,), 1.0),
    ]
    return random_tensors(device, dtype, shapes)


def ids(device: str, *values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def check(inputs: list[Any], *rest: Any, **options: Any) -> tuple[Tensor, dict[int | str, Tensor]]:
    """Sums over rows cancel, and exp on a GPU is right within two units: hence the slack."""
    return check_against_oracle(component_conv, component_conv_reference, inputs, *rest, slack=4.0, **options)


def outputs(inputs: list[Any], *rest: Any, **options: Any) -> list[Tensor]:
    grad = torch.cos(torch.arange(inputs[0].numel() // 2)).view(*inputs[0].shape[:-1], -1).to(inputs[0])
    y, grads = outputs_and_gradients(component_conv, *inputs, *rest, grad_output=grad, **options)
    return [y, *grads.values()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(device: str, size: tuple[Any, ...], dtype: torch.dtype) -> None:
    inputs, components = make(device, *size, dtype), size[2]
    live = ids(device, *range(0, components, 2), components)
    shares = (torch.rand(components) + 0.1).to(device)
    check(inputs, shares, live, components=components, lengths=ids(device, *size[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed(device: str, dtype: torch.dtype) -> None:
    lengths = [18, 0, 1, 30]
    x, *parameters = make(device, lengths, 30, 3, 6, 7, dtype)
    rows = torch.cat([x.detach()[b, :length] for b, length in enumerate(lengths)]).requires_grad_()
    live, offsets = ids(device, 1, 2), ids(device, 0, 18, 18, 19, 49)
    packed, _ = check([rows, *parameters], None, live, components=3, offsets=offsets)
    padded = component_conv(x, *parameters, None, live, components=3, lengths=ids(device, *lengths))
    assert torch.equal(packed, torch.cat([padded[b, :length] for b, length in enumerate(lengths)]))


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu", "none"])
def test_norms_and_activations(device: str, norm: str, activation: str) -> None:
    x, weight, bias, gain, shift = make(device, [20, 13], 20, 3, 5, 5, torch.float32)
    vectors = [gain, shift] if norm == "layer" else [None, None]
    options = {"components": 3, "norm": norm, "activation": activation, "lengths": ids(device, 20, 13)}
    check([x, weight, bias, *vectors], None, ids(device, 0, 2), **options)


@pytest.mark.parametrize("absent", [(2,), (3,), (4,), (2, 3, 4)])
def test_absent_vectors(device: str, absent: tuple[int, ...]) -> None:
    inputs = make(device, [10, 10], 10, 2, 9, 7, torch.float32)
    for index in absent:
        inputs[index] = None
    check(inputs, torch.tensor([1.0, 0.25], device=device), components=2, eps=0.1)


@pytest.mark.parametrize("live", [(), (0,), (3,), (1, 2)])
@pytest.mark.parametrize("filled", [0, 2])
def test_dead_components_do_not_matter(device: str, live: tuple[int, ...], filled: int) -> None:
    """They and the padding hold NaN, and get zeros."""
    components, width = 4, 8
    lengths = [12, 3, 0]
    inputs = make(device, lengths, 12, components, width, 5, torch.float32)
    dead = torch.ones(components * width, dtype=torch.bool, device=device)
    for component in live:
        dead[component * width : (component + 1) * width] = False

    def poison(tensors: list[Any]) -> None:
        x, *parameters = tensors
        x[..., dead.repeat(2)] = torch.nan
        for tensor in parameters:
            tensor[dead] = torch.nan
        for rows, length in zip(x, lengths, strict=True):
            rows[length:] = torch.nan

    y, grads = check(
        inputs,
        None,
        ids(device, *live, *[components] * filled),
        components=components,
        lengths=ids(device, *lengths),
        prepare=poison,
    )
    assert not y[..., dead].any()
    assert not grads[0][..., dead.repeat(2)].any()
    for index in range(1, 5):
        assert not grads[index][dead].any()
    for tensor in (y, grads[0]):
        for rows, length in zip(tensor, lengths, strict=True):
            assert not rows[length:].any()


def test_ids_out_of_range_read_nothing_else(device: str) -> None:
    inputs = make(device, [10, 10], 10, 3, 4, 3, torch.float32)
    for garbage in ([-1, 1], [1, 2**31 - 1], [-(2**31), 1]):
        ours = outputs(inputs, None, ids(device, *garbage), components=3)
        assert same_bits(ours[:1], outputs(inputs, None, ids(device, 1, 3), components=3)[:1])


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_as_the_native_kernels(device: str, native: str, dtype: torch.dtype) -> None:
    inputs = make(device, [21, 4], 21, 3, 8, 7, dtype)
    rest = torch.tensor([1.0, 2.0, 0.5], device=device), ids(device, 0, 2)
    ours = outputs(inputs, *rest, components=3, lengths=ids(device, 21, 4))
    with use_backend(native):
        others = [tensor.detach().cpu().requires_grad_() for tensor in inputs]
        theirs = outputs(others, *(t.cpu() for t in rest), components=3, lengths=ids("cpu", 21, 4))
    for one, other in zip(ours, theirs, strict=True):
        slack = 0.05 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(one.cpu(), other, rtol=slack, atol=slack)


def test_twice_the_same_bits_and_any_strides(device: str) -> None:
    inputs = make(device, [40, 25], 40, 2, 6, 5, torch.float32)
    ours = outputs(inputs, components=2)
    assert same_bits(ours, outputs(inputs, components=2))
    other = [inputs[0].transpose(0, 1).contiguous().transpose(0, 1), inputs[1].t().contiguous().t(), *inputs[2:]]
    assert same_bits(ours, outputs([t.detach().requires_grad_() for t in other], components=2))


def test_without_gradients(device: str) -> None:
    inputs = [tensor.detach() for tensor in make(device, [10], 10, 2, 4, 3, torch.float32)]
    with_gradients = component_conv(*[tensor.clone().requires_grad_() for tensor in inputs], components=2)
    assert torch.equal(component_conv(*inputs, components=2), with_gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 24, 1])
def test_real_sizes(device: str, dtype: torch.dtype, width: int) -> None:
    lengths = [500, 3, 250, 471, 0, 499, 128, 16]
    components = 384 // width
    inputs = make(device, lengths, 500, components, width, 31, dtype)
    rest = None, ids(device, *range(0, components, 2))
    check(inputs, *rest, components=components, lengths=ids(device, *lengths))
    ours = outputs(inputs, *rest, components=components)
    assert same_bits(ours, outputs(inputs, *rest, components=components))
