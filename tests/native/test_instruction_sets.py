"""The kernels of all instruction sets give the same results, to rounding, on the same random problems.

Where the machine has no AVX-512, an emulator may run it: `make emulate`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.native import emulator
from tests.native.fuzzers import OPS, build, runs_here, sources
from tests.native.probe import CAPABILITIES

PROBLEMS = 60
EMULATED = 4
STATIC = ["-O2", "-static"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def results(op: str, isa: str, problems: int, folder: Path) -> Tensor:
    program = build(sources(op), isa, STATIC, folder / f"{op}_{isa}")
    written = folder / f"{isa}.out"
    subprocess.run([str(program), str(problems), "1", str(written)], check=True, capture_output=True)
    return as_tensor(written.read_bytes())


def as_tensor(written: bytes) -> Tensor:
    return torch.frombuffer(bytearray(written), dtype=torch.float32)


def assert_agree(found: Tensor, portable: Tensor) -> None:
    """Rounding to bfloat16 may fall to either side, of few values."""
    assert portable.numel() > 0
    torch.testing.assert_close(found, portable, rtol=2e-2, atol=2e-2, equal_nan=True)
    exact = torch.isclose(found, portable, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert exact.float().mean() > 0.98


@pytest.mark.parametrize("isa", CAPABILITIES[1:])
@pytest.mark.parametrize("op", OPS)
def test_agree(op: str, isa: str, tmp_path: Path) -> None:
    if not runs_here(isa):
        pytest.skip(f"{isa} is not available here")
    assert_agree(results(op, isa, PROBLEMS, tmp_path), results(op, "portable", PROBLEMS, tmp_path))


@pytest.mark.emulator
def test_agree_in_the_emulator(tmp_path: Path) -> None:
    if emulator.missing():
        pytest.skip(f"needs {emulator.missing()}")
    programs = {op: build(sources(op), "avx512", STATIC, tmp_path / op) for op in OPS}
    found = emulator.run(programs, [str(EMULATED), "1"], tmp_path, seconds=2700)
    for op in OPS:
        assert_agree(as_tensor(found[op]), results(op, "portable", EMULATED, tmp_path))
