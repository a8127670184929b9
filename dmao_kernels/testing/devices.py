"""Triton kernels on tensors of the CPU: for the interpreter, and for compiling without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dmao_kernels import dispatch


@contextmanager
def triton_on_cpu() -> Iterator[None]:
    """Forces the backend "triton", which takes tensors on the CPU meanwhile.

    Something must run its kernels there: Triton's interpreter (dmao_kernels.testing.interpreter) or the mock driver.
    """
    before = set(dispatch._TRITON_DEVICES)
    dispatch._TRITON_DEVICES.add("cpu")
    try:
        with dispatch.use_backend("triton"):
            yield
    finally:
        dispatch._TRITON_DEVICES.intersection_update(before)
