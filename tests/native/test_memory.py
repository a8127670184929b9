"""Operators of the native library leave nothing behind on the heap."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import pytest
import torch

from dmao_kernels import component_conv, component_ffn, importance_, masked_linear

CALLS = 2000
ONE_LEAK = 16  # bytes a call; the least that malloc gives


class Mallinfo2(ctypes.Structure):
    """Of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks in_use free keepcost".split()  # noqa: SIM905
    ]


def bytes_in_use() -> int:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    gc.collect()
    return mallinfo2().in_use


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)


X, W, FILTERS, EMA = numbers(1, 4, 16), numbers(16, 16), numbers(8, 3), torch.zeros(1)
NO_SEGMENTS = torch.zeros(0, 5, dtype=torch.int64)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library cannot tell (glibc 2.33 can)")
@pytest.mark.parametrize(
    "call",
    [
        lambda: masked_linear(X, W, activation="relu").sum().backward(),
        lambda: component_ffn(X, W, None, W, None).sum().backward(),
        lambda: component_conv(X, FILTERS, norm="none").sum().backward(),
        lambda: importance_(EMA, [], [], NO_SEGMENTS, EMA),
    ],
    ids=["masked_linear", "component_ffn", "component_conv", "importance_"],
)
def test_calls_take_no_memory(call: Callable[[], None]) -> None:
    for _ in range(100):
        call()
    before = bytes_in_use()
    for _ in range(CALLS):
        call()
    assert bytes_in_use() - before < CALLS * ONE_LEAK
