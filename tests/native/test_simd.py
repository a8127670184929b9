"""cpu/simd.h, compiled for each instruction set that this machine has, against PyTorch."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from dmao_kernels.testing import ODD_SIZES, Poison

PROBE = "simd"


def call(probe: ctypes.CDLL, name: str, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    poison = Poison()
    inside, y = poison.around(x), poison.around(torch.zeros(x.shape, dtype=dtype))
    getattr(probe, name)(ctypes.c_void_p(inside.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(x.numel()))
    poison.check()
    return y


@pytest.mark.parametrize("size", ODD_SIZES)
def test_arithmetic_and_tails(probe: ctypes.CDLL, size: int) -> None:
    x = torch.randn(size)
    expected = x.clamp(min=1) - x.clamp(max=1) + x / 3 * x
    torch.testing.assert_close(call(probe, "vec_arithmetic", x), expected)
    assert torch.equal(call(probe, "vec_abs", x), x.abs())
    as_bf16 = call(probe, "to_bf16", x, torch.bfloat16)
    assert torch.equal(as_bf16, x.bfloat16())
    assert torch.equal(call(probe, "from_bf16", as_bf16), as_bf16.float())


def test_sum_and_largest(probe: ctypes.CDLL) -> None:
    x = torch.randn(40, probe.vec_width())
    found = {}
    for name in ("vec_sum", "vec_largest"):
        found[name] = torch.zeros(40)
        pointers = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(found[name].data_ptr())
        getattr(probe, name)(*pointers, ctypes.c_int64(x.numel()))
    torch.testing.assert_close(found["vec_sum"], x.sum(1))
    assert torch.equal(found["vec_largest"], x.amax(1))


def test_exp(probe: ctypes.CDLL) -> None:
    x = torch.linspace(-87.0, 88.7, 100_001)
    error = (call(probe, "vec_exp", x).double() / x.double().exp() - 1).abs().max().item()
    assert error < 2 * torch.finfo(torch.float32).eps
    edge = torch.tensor([0.0, -0.0, 89.0, 1e30, torch.inf, -103.0, -110.0, -1e30, -torch.inf, torch.nan])
    result, expected = call(probe, "vec_exp", edge), edge.exp()
    assert torch.equal(result[:5], expected[:5])
    torch.testing.assert_close(result[5:], expected[5:], rtol=0, atol=3e-45, equal_nan=True)


def test_exp2(probe: ctypes.CDLL) -> None:
    x = torch.linspace(-126.0, 127.9, 100_001)
    error = (call(probe, "vec_exp2", x).double() / x.double().exp2() - 1).abs().max().item()
    assert error < 2 * torch.finfo(torch.float32).eps
    assert torch.equal(call(probe, "vec_exp2", torch.arange(-126.0, 128.0)), torch.arange(-126.0, 128.0).exp2())
    edge = torch.tensor([-126.01, -127.0, -200.0, -1e30, -torch.inf, torch.nan])
    result = call(probe, "vec_exp2", edge)
    assert torch.equal(result[:5], torch.zeros(5))
    assert result[5].isnan()


def test_sigmoid(probe: ctypes.CDLL) -> None:
    x = torch.cat([torch.linspace(-80, 80, 10_001), torch.tensor([-torch.inf, torch.inf, torch.nan])])
    torch.testing.assert_close(call(probe, "vec_sigmoid", x), x.sigmoid(), rtol=1e-6, atol=0, equal_nan=True)


def test_bfloat16_rounding(probe: ctypes.CDLL) -> None:
    """Ties, overflow, subnormals, signs, infinities and NaN, against PyTorch."""
    high = torch.randint(0, 2**16, (20_000,), dtype=torch.int32)
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    x = ((high[:, None] << 16) | low).flatten().view(torch.float32)
    expected = x.bfloat16()
    # The instruction of AVX-512-BF16 flushes subnormal numbers to zero.
    subnormal = (x.abs() < torch.finfo(torch.float32).tiny) & ("avx512_bf16" in probe._name)
    result = call(probe, "to_bf16", x, torch.bfloat16)
    torch.testing.assert_close(result[~subnormal], expected[~subnormal], rtol=0, atol=0, equal_nan=True)
    probe.scalar_to_bf16.argtypes = [ctypes.c_float]
    probe.scalar_to_bf16.restype = ctypes.c_uint16
    bits = torch.tensor([probe.scalar_to_bf16(value) for value in x[:3000].tolist()], dtype=torch.int32)
    scalar = (bits << 16).view(torch.float32)
    torch.testing.assert_close(scalar, expected[:3000].float(), rtol=0, atol=0, equal_nan=True)
