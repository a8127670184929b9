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


# component_ffn rounds hidden values and their gradients where products are of bfloat16: every sum over them differs.
ROUNDS_HIDDEN = {("component_ffn", "avx512_bf16")}


def results(op: str, isa: str, problems: int, folder: Path) -> list[Tensor]:
    program = build(sources(op), isa, STATIC, folder / f"{op}_{isa}")
    written = folder / f"{isa}.out"
    subprocess.run([str(program), str(problems), "1", str(written)], check=True, capture_output=True)
    return as_tensors(written.read_bytes())


def as_tensors(written: bytes) -> list[Tensor]:
    """What `record` of csrc/tests/fuzz/fuzz.h wrote."""
    found, at = [], 0
    while at < len(written):
        count = int.from_bytes(written[at : at + 8], "little")
        found.append(torch.tensor(memoryview(written[at + 8 : at + 8 + 4 * count]).cast("f"), dtype=torch.float32))
        at += 8 + 4 * count
    return found


def assert_agree(found: list[Tensor], portable: list[Tensor], rounds_hidden: bool = False) -> None:
    """Rounding to bfloat16 may fall to either side, of few values; of all sums over values that one of both rounds."""
    assert sum(tensor.numel() for tensor in portable) > 0
    assert [tensor.numel() for tensor in found] == [tensor.numel() for tensor in portable]
    exact = []
    for ours, theirs in zip(found, portable, strict=True):
        size = max(1.0, float(theirs.square().nanmean().sqrt())) if rounds_hidden and theirs.numel() else 1.0
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * size, equal_nan=True)
        exact.append(torch.isclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True))
    assert torch.cat(exact).float().mean() > (0.8 if rounds_hidden else 0.98)


@pytest.mark.parametrize("isa", CAPABILITIES[1:])
@pytest.mark.parametrize("op", OPS)
def test_agree(op: str, isa: str, tmp_path: Path) -> None:
    if not runs_here(isa):
        pytest.skip(f"{isa} is not available here")
    found = results(op, isa, PROBLEMS, tmp_path)
    assert_agree(found, results(op, "portable", PROBLEMS, tmp_path), (op, isa) in ROUNDS_HIDDEN)


@pytest.mark.emulator
def test_agree_in_the_emulator(tmp_path: Path) -> None:
    if emulator.missing():
        pytest.skip(f"needs {emulator.missing()}")
    programs = {op: build(sources(op), "avx512", STATIC, tmp_path / op) for op in OPS}
    found = emulator.run(programs, [str(EMULATED), "1"], tmp_path, seconds=2700)
    for op in OPS:
        assert_agree(as_tensors(found[op]), results(op, "portable", EMULATED, tmp_path))
