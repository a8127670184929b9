"""Kernels for GPUs on tensors of the CPU: Triton's in its interpreter or compiled only, those in CUDA C++ emulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dmao_kernels import dispatch


@contextmanager
def triton_on_cpu() -> Iterator[None]:
    """Forces the backend "triton", which takes tensors on the CPU meanwhile.

    Something must run its kernels there: Triton's interpreter (dmao_kernels.testing.interpreter) or the mock driver.
    """
    devices = dispatch._DEVICES["triton"]
    before = set(devices)
    devices.add("cpu")
    try:
        with dispatch.use_backend("triton"):
            yield
    finally:
        devices.intersection_update(before)


def cuda_on_host(library: Path) -> None:
    """Loads the emulated CUDA C++ kernels: `with use_backend("cuda-emulated")` then runs them, slowly, on the CPU.

    library: csrc/ops/cuda built for the host, which tests/emu/build.py does.
    """
    torch.ops.load_library(library)
    dispatch._WHY_NOT["cuda-emulated"] = ""
