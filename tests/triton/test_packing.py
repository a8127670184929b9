"""pack and unpack in Triton: against plain indexing, any dtype, offsets that cannot be trusted."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels import pack, unpack
from dmao_kernels._library import operators

DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool,
    torch.complex64,
]  # fmt: skip


def ids(device: str, *values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (16,), (3, 4), (1300,)])
def test_every_dtype(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    lengths = [7, 0, 1, 9, 0]
    x = (torch.randn(5, 9, *shape) * 100).to(dtype).to(device)
    packed, offsets = pack(x, ids(device, *lengths))
    expected = torch.cat([x[b, :length] for b, length in enumerate(lengths)])
    assert torch.equal(packed, expected)
    padded = unpack(packed, offsets, 11)
    for b, length in enumerate(lengths):
        assert torch.equal(padded[b, :length], x[b, :length])
        assert not padded[b, length:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gradients(device: str, dtype: torch.dtype) -> None:
    """Of padding: zero, whatever stands there."""
    x = torch.randn(3, 6, 4).to(dtype).to(device).requires_grad_()
    packed, offsets = pack(x, ids(device, 2, 6, 0))
    weights = torch.randn(8, 4).to(packed)
    (grad,) = torch.autograd.grad(packed, x, weights, retain_graph=True)
    assert torch.equal(grad[0, :2], weights[:2])
    assert torch.equal(grad[1], weights[2:])
    assert not grad[0, 2:].any()
    assert not grad[2].any()
    poisoned = torch.full((3, 6, 4), torch.nan).to(packed)
    poisoned[0, :2], poisoned[1] = 1.0, 2.0
    (through,) = torch.autograd.grad(unpack(packed, offsets, 6), x, poisoned)
    assert not through.isnan().any()


def test_strides_and_misaligned_memory(device: str) -> None:
    memory = torch.randn(1 + 2 * 5 * 6).to(torch.bfloat16).to(device)
    lengths = ids(device, 3, 5)
    for x in (memory[1:].view(2, 5, 6), memory[:-1].view(2, 6, 5).transpose(1, 2)):
        packed, offsets = pack(x, lengths)
        assert torch.equal(packed, torch.cat([x[0, :3], x[1]]))
        assert torch.equal(unpack(packed, offsets, 5)[1], x[1])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_nothing(device: str, shape: tuple[int, ...]) -> None:
    lengths = ids(device, *[0] * shape[0])
    packed, offsets = pack(torch.zeros(shape, device=device), lengths)
    assert packed.shape == (0, shape[2])
    assert unpack(packed, offsets, 3).shape == (shape[0], 3, shape[2])
    assert not unpack(packed, offsets, 3).any()


@pytest.mark.parametrize(
    "garbage", [[-7, 100, 2**31 - 1], [3, 2, 1], [2**31 - 1, -(2**31), 0], [2**31 - 1, 5, 9], [9, 9, 9]]
)
def test_garbage_reads_nothing_else(device: str, garbage: list[int]) -> None:
    x = torch.randn(2, 5, 3, device=device)
    offsets = ids(device, *garbage)
    operators("triton").pack(x, offsets, 8)
    operators("triton").unpack(x[0], offsets, 7)


def test_many_utterances(device: str) -> None:
    lengths = torch.randint(0, 4, (100,), dtype=torch.int32)
    x = torch.randn(100, 3, 2, device=device)
    packed, offsets = pack(x, lengths.to(device))
    assert torch.equal(packed, torch.cat([x[b, :length] for b, length in enumerate(lengths.tolist())]))
    assert torch.equal(pack(unpack(packed, offsets, 3), lengths.to(device))[0], packed)
