"""The micro-kernel of csrc/cpu/gemm.h on tiles in cache: `make bench ARGS="-k micro-kernel"`.

C += A B, with B packed and A in place, packed along its columns as for gradients of weights ("A^T"), or packed in
strips of rows. The limit is the peak of multiply-adds. The peer is what PyTorch exports of oneDNN's brgemm. Its headers
cannot be had through the stable ABI, its symbol can: the loop around the calls is compiled with the probe, so that
Python takes no part in the time of either.
"""

from __future__ import annotations

import ctypes
import itertools
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.registry import Case, Problem, register
from benchmarks.roofline import build_probe

# at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, float const* a, float const* b, float* c, vnni)
BRGEMM = "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb"
ORDERS = ("in place", "A^T", "strips")  # numbered as gemm.h does
TIMED = 1e8  # flops of a timed call, about 1 ms


def find_brgemm() -> ctypes.c_void_p | None:
    """The address of PyTorch's brgemm of float32."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
    return ctypes.cast(getattr(library, BRGEMM), ctypes.c_void_p) if hasattr(library, BRGEMM) else None


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def make(m: int, n: int, depth: int, order: str) -> Problem:
    probe = build_probe("gemm")
    if probe is None:
        raise RuntimeError("micro-kernel: needs a compiler and the native library")
    a, b = torch.randn(m, depth), torch.randn(depth, n)
    given = a.t().contiguous() if order == "A^T" else a
    number = ORDERS.index(order)
    c, theirs = torch.zeros(2, m, n)
    packed_a, packed_b = torch.empty((m + 16) * depth), torch.empty(depth * (n + 16))
    sizes = [ctypes.c_int64(size) for size in (m, n, depth)]
    stride_a, stride_n = ctypes.c_int64(given.shape[1]), ctypes.c_int64(n)
    probe.product_float32(
        *(number, False, *sizes, pointer(given), stride_a, pointer(b), stride_n, None, None),
        *(pointer(packed_a), pointer(packed_b), pointer(c), stride_n, None),
    )
    left = packed_a if number else given
    repeats = max(1, round(TIMED / (2 * m * n * depth)))

    def ours(count: int = repeats) -> None:
        probe.repeat_float32(ctypes.c_int64(count), number, *sizes, pointer(left), pointer(packed_b), pointer(c))

    def peer(count: int = repeats) -> None:
        probe.repeat_brgemm(ctypes.c_int64(count), brgemm, *sizes, pointer(a), pointer(b), pointer(theirs))

    brgemm = find_brgemm()
    runs = [(ours, c)] if brgemm is None else [(ours, c), (peer, theirs)]

    def gate() -> None:
        exact = a.double() @ b.double()
        for run, sums in runs:
            sums.zero_()
            run(1)
            torch.testing.assert_close(sums.double(), exact, rtol=0, atol=3e-7 * depth)

    return Problem(
        {"ours": ours} if brgemm is None else {"ours": ours, "brgemm": peer},
        gate=gate,
        flops=2.0 * m * n * depth * repeats,
        absent={"brgemm": "this PyTorch does not export it"} if brgemm is None else {},
    )


SIZES = ((64, 64, 384), (64, 64, 64), (128, 96, 256), (32, 32, 32))

for (m, n, depth), order in itertools.product(SIZES, ORDERS):
    register(
        Case(
            "micro-kernel",
            f"{m}x{n}x{depth} {order}",
            partial(make, m, n, depth, order),
            targets={"brgemm": 1 / 0.95},
            quick=(m, n, depth) == (64, 64, 384),
            threads=(1,),
        )
    )
