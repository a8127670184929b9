"""A call leaves no memory behind, native memory included."""

from __future__ import annotations

import ctypes
import gc

import pytest
import torch

from dmao_kernels.ops import component_ffn, dropout_add, masked_linear

CALLS = 2000


class _Malloc(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]

    @property
    def uordblks(self) -> int:
        """Bytes in use: the eighth of the fields."""
        return self.field_7


def _allocated() -> int:
    gc.collect()
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("needs glibc's mallinfo2")
    mallinfo.restype = _Malloc
    return mallinfo().uordblks


X, W, B = torch.randn(3, 8, 16), torch.randn(16, 16), torch.randn(16)
# The header torch/csrc/stable/stableivalue_conversions.h of PyTorch 2.13 copies a string argument with `new` and never
# frees it: 48 bytes a call. Once this is mended, KNOWN in tests/trainer/test_soak.py is 0.
STRING = pytest.mark.xfail(strict=True, reason="PyTorch 2.13 loses every string that an operator gets")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: dropout_add(X, X), id="dropout_add"),
        pytest.param(lambda: masked_linear(X, W, B), id="masked_linear", marks=STRING),
        pytest.param(lambda: component_ffn(X, W, B, W, B), id="component_ffn", marks=STRING),
    ],
)
def test_calls_leave_nothing(call):
    for _ in range(100):
        call()
    before = _allocated()
    for _ in range(CALLS):
        call()
    assert (_allocated() - before) / CALLS < 8
