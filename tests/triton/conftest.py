"""Where the kernels of these tests run: on the GPU, or without one in Triton's interpreter, under its guard.

The interpreter holds for a whole process, so these tests are not collected with the others: `make test-interp`, or
TRITON_INTERPRET=1 pytest tests/triton. With TRITON_INTERPRET=1 a GPU is left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch

import dmao_kernels
from dmao_kernels.testing.devices import triton_on_cpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
if INTERPRETED:
    assert os.environ.get("TRITON_INTERPRET") == "1" or "triton" not in sys.modules, "set TRITON_INTERPRET=1"
    os.environ["TRITON_INTERPRET"] = "1"
    from dmao_kernels.testing import interpreter

    interpreter.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if INTERPRETED and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def device() -> str:
    """Where tensors have to be."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _triton_kernels() -> Iterator[None]:
    """Every operation of the library runs its Triton kernels."""
    with triton_on_cpu() if INTERPRETED else dmao_kernels.use_backend("triton"):
        yield


@pytest.fixture
def native() -> str:
    """The backend of native kernels, for `with use_backend(native)`; skips the test where they are not there."""
    if dmao_kernels.cpu_capability() is None:
        pytest.skip("no native kernels to compare with")
    return "cpu"
