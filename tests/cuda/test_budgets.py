"""Every kernel in CUDA C++, as nvcc made it for GPUs that are not here, within its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dmao_kernels.dispatch import supported
from dmao_kernels.testing import sass
from dmao_kernels.testing.gpus import CUDA_GPUS
from tests.aot import budgets
from tests.aot.problems import PROBLEMS
from tests.cuda import wheel
from tests.cuda.launches import recorded

pytestmark = pytest.mark.timeout(1800)  # the first test takes all kernels apart

FILE = Path(__file__).with_name("budgets.json")
BUDGETS = budgets.load(FILE)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
# float16 compiles to what bfloat16 does but for the name of the format: one architecture shows it.
CASES = [(arch, dtype) for dtype in DTYPES for arch in sorted(CUDA_GPUS) if dtype != "float16" or arch == 90]
WITH_KERNELS = tuple(op.rstrip("_") for op, kernels in supported().items() if "cuda" in kernels)
# The library for the host, which writes launches down, has no kernels for heads of 96.
OURS = [name for name in PROBLEMS if name.startswith(WITH_KERNELS) and "_96" not in name]


@pytest.fixture(scope="session")
def compiled(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, sass.Binary]]:
    return wheel.kernels(installed / "dmao_kernels/_cuda.so", tmp_path_factory.mktemp("cubins"))


def test_every_architecture_is_there(compiled: dict[int, dict[str, sass.Binary]]) -> None:
    assert sorted(compiled) == sorted(CUDA_GPUS)
    assert len({frozenset(kernels) for kernels in compiled.values()}) == 1


def test_nothing_spills(compiled: dict[int, dict[str, sass.Binary]]) -> None:
    """Also what the problems of test_budget do not launch."""
    stacks = {
        f"sm_{arch} {name}": kernel.usage.strip()
        for arch, kernels in compiled.items()
        for name, kernel in kernels.items()
        if "STACK:0 " not in kernel.usage or "LDL" in kernel.sass or "STL" in kernel.sass
    }
    assert not stacks


@pytest.mark.parametrize(("arch", "dtype"), CASES, ids=lambda value: str(value))
@pytest.mark.parametrize("problem", OURS)
def test_budget(
    problem: str,
    arch: int,
    dtype: str,
    compiled: dict[int, dict[str, sass.Binary]],
    emulated_library: Path,
    tmp_path: Path,
    record: Any,
    request: pytest.FixtureRequest,
) -> None:
    gpu = CUDA_GPUS[arch]
    launches = recorded(lambda: PROBLEMS[problem](DTYPES[dtype]), gpu, emulated_library, tmp_path / "launches")
    assert launches, f"{problem} launched nothing"
    codes = {each.name: compiled[arch][each.name].code(gpu, each.shared, each.threads) for each in launches}
    record(arch, dtype, problem, codes)
    if request.config.getoption("--write-budgets"):
        return
    budgets.check(codes, BUDGETS, budgets.key(arch, dtype, problem, ""), "make test-cuda-build")
