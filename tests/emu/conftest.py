from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import dmao_kernels
from dmao_kernels.testing.devices import cuda_on_host
from tests.emu.build import Compiler, build_operations


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(lambda: tmp_path_factory.mktemp("emu"))


@pytest.fixture(scope="session")
def _operations() -> None:
    cuda_on_host(build_operations())


@pytest.fixture
def emulated(_operations: None) -> Iterator[None]:
    """Every operation runs its CUDA kernels on the host, float32 in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with dmao_kernels.use_backend("cuda-emulated"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def device(emulated: None) -> str:
    """Where the tensors of tests are that run on GPUs, too (tests/triton)."""
    return "cpu"


@pytest.fixture
def native() -> str:
    """The backend of native kernels, for `with use_backend(native)`; skips the test where they are not there."""
    if dmao_kernels.cpu_capability() is None:
        pytest.skip("no native kernels to compare with")
    return "cpu"
