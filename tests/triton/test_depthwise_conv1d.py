"""depthwise_conv1d in Triton: against float64 and the native kernels, packed and padded, padding, determinism."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmao_kernels import depthwise_conv1d, use_backend
from dmao_kernels.ops.depthwise_conv1d.reference import depthwise_conv1d_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.triton.common import DTYPES, check_against_oracle, random_tensors, same_bits


def problem(
    device: str, dtype: torch.dtype, lengths: list[int], frames: int, channels: int, taps: int, packed: bool = False
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """x, weight, bias, and lengths or offsets."""
    rows = (sum(lengths),) if packed else (len(lengths), frames)
    shapes = [((*rows, channels), 1.0), ((channels, taps), taps**-0.5), ((channels,), 1.0)]
    given = torch.tensor(lengths, dtype=torch.int32, device=device)
    if not packed:
        return random_tensors(device, dtype, shapes), {"lengths": given}
    offsets = torch.nn.functional.pad(given.cumsum(0, dtype=torch.int32), (1, 0))
    return random_tensors(device, dtype, shapes), {"offsets": offsets}


def outputs(inputs: list[Tensor], grad: Tensor, **options: Tensor) -> list[Tensor]:
    y, grads = outputs_and_gradients(depthwise_conv1d, *inputs, grad_output=grad, **options)
    return [y, *grads.values()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_against_float64(device: str, dtype: torch.dtype, packed: bool) -> None:
    inputs, options = problem(device, dtype, [19, 0, 1, 33], 33, 70, 7, packed)
    check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, inputs, **options)


@pytest.mark.parametrize("taps", [1, 3, 31, 33])
def test_taps(device: str, taps: int) -> None:
    inputs, options = problem(device, torch.float32, [17, 5], 17, 3, taps)
    check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, inputs, **options)


def test_no_bias_and_no_lengths(device: str) -> None:
    (x, weight, _), _ = problem(device, torch.float32, [20, 20], 20, 5, 5)
    check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, [x, weight, None])


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3), (2, 4, 0)])
def test_nothing(device: str, shape: tuple[int, ...]) -> None:
    x, weight = random_tensors(device, torch.float32, [(shape, 1.0), ((shape[-1], 3), 1.0)])
    depthwise_conv1d(x, weight).sum().backward()
    assert not x.grad.any()
    assert not weight.grad.any()


def test_padding_does_not_matter(device: str) -> None:
    inputs, options = problem(device, torch.float32, [9, 2, 0], 20, 6, 5)

    def poison(tensors: list[Tensor]) -> None:
        for x, length in zip(tensors[0], options["lengths"].tolist(), strict=True):
            x[length:] = torch.nan

    y, grads = check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, inputs, prepare=poison, **options)
    for tensor in (y, grads[0]):
        for rows, length in zip(tensor, options["lengths"].tolist(), strict=True):
            assert not rows[length:].any()


def test_packed_as_padded(device: str) -> None:
    lengths = [18, 1, 0, 40]
    (x, *parameters), options = problem(device, torch.bfloat16, lengths, 40, 10, 9)
    rows = torch.cat([x[b, :length] for b, length in enumerate(lengths)])
    offsets = torch.tensor([0, 18, 19, 19, 59], dtype=torch.int32, device=device)
    padded = depthwise_conv1d(x, *parameters, **options)
    packed = depthwise_conv1d(rows, *parameters, offsets=offsets)
    assert torch.equal(packed, torch.cat([padded[b, :length] for b, length in enumerate(lengths)]))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_as_the_native_kernels(device: str, native: str, dtype: torch.dtype) -> None:
    inputs, options = problem(device, dtype, [21, 3], 21, 20, 5)
    grad = torch.randn_like(inputs[0])
    ours = outputs(inputs, grad, **options)
    with use_backend(native):
        theirs = outputs(
            [t.detach().cpu().requires_grad_() for t in inputs], grad.cpu(), lengths=options["lengths"].cpu()
        )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_twice_the_same_bits(device: str) -> None:
    inputs, options = problem(device, torch.float32, [40, 25], 40, 8, 5)
    grad = torch.randn_like(inputs[0])
    assert same_bits(outputs(inputs, grad, **options), outputs(inputs, grad, **options))


def test_strides(device: str) -> None:
    inputs, options = problem(device, torch.float32, [12, 7], 12, 6, 3)
    other = [inputs[0].transpose(0, 1).contiguous().transpose(0, 1), inputs[1].t().contiguous().t(), inputs[2]]
    grad = torch.randn(6, 12, 2, device=device).permute(2, 1, 0)
    ours = outputs([t.detach().requires_grad_() for t in other], grad, **options)
    assert same_bits(ours, outputs(inputs, grad.contiguous(), **options))


@pytest.mark.parametrize("garbage", [[-5, 100], [7, 3], [2**31 - 1, -(2**31)]])
def test_garbage_lengths_read_nothing_else(device: str, garbage: list[int]) -> None:
    inputs, _ = problem(device, torch.float32, [10, 10], 10, 4, 3)
    lengths = torch.tensor(garbage, dtype=torch.int32, device=device)
    outputs(inputs, torch.ones_like(inputs[0]), lengths=lengths)
    rows = inputs[0].detach().flatten(0, 1).requires_grad_()
    outputs([rows, *inputs[1:]], torch.ones_like(rows), offsets=torch.tensor([*garbage, 3]).int().to(device))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_real_sizes(device: str, dtype: torch.dtype, packed: bool) -> None:
    lengths = [500, 3, 250, 471, 0, 499, 128, 16]
    inputs, options = problem(device, dtype, lengths, 500, 384, 31, packed)
    check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, inputs, **options)
    grad = torch.randn_like(inputs[0])
    assert same_bits(outputs(inputs, grad, **options), outputs(inputs, grad, **options))
