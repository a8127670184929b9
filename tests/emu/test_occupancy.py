"""How many blocks run at a time on one processor: the formula of dmao_kernels.testing against NVIDIA's own header."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dmao_kernels.testing.gpus import CUDA_GPUS, blocks_per_processor
from tests.emu.headers import require_cuda_headers
from tests.native.fuzzers import require_compiler
from tests.native.probe import ROOT


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["-std=c++20", *require_cuda_headers()]
    target = tmp_path_factory.mktemp("occupancy") / "occupancy"
    source = ROOT / "csrc/tests/cuda_headers/occupancy.cpp"
    subprocess.run([require_compiler(), *options, str(source), "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("arch", sorted(CUDA_GPUS))
def test_formula_is_that_of_nvidia(arch: int, program: Path) -> None:
    """All registers with all threads, all sizes of shared memory, and all three at random."""
    gpu = CUDA_GPUS[arch]
    sizes = (gpu.processors, gpu.warps_per_processor * 32, gpu.shared_per_processor, gpu.shared_per_block)
    found = subprocess.run([str(program), str(arch), *map(str, sizes)], capture_output=True, text=True, check=True)
    rows = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    assert len(rows) > 25_000
    wrong = [
        row
        for row in rows
        if blocks_per_processor(gpu, registers=row[0], shared=row[2], warps=row[1] // 32)[0] != row[3]
    ]
    assert not wrong, f"{len(wrong)} of {len(rows)}, such as {wrong[:5]}"
