"""Products of tiles on tensor cores, on the host: right in every layout and type, without bank conflicts or races."""

from __future__ import annotations

import re

import pytest

from tests.emu.build import BUILDS, Compiler, check_right, run, slow_unless_plain
from tests.native.probe import ROOT

SOURCE = ROOT / "csrc/tests/cuda/products.cpp"


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build))


# build, what stands in the kernel or its program, what takes its place, what is to be noticed
MUTANTS = {
    "no barrier": ("threads", "__syncthreads();  // all copies", "//", "data race"),
    "barrier of one warp": (
        "threads",
        "__syncthreads();  // all copies",
        "if (threadIdx.x < 32) __syncthreads();  //",
        "data race",
    ),
    "weak wait": ("plain", "async_wait<kStages - 2>", "async_wait<kStages - 1>", "not been waited for"),
    "stage too early": ("plain", "fetch(step + kStages - 1,", "fetch(step + kStages,", "wrong"),
    "too little shared memory": ("memory", "kStages * kStageBytes;\n    static", "64;\n    static", "shared memory"),
    "bound": ("memory", "i < wide", "i <= wide", "the source is out of bounds"),
    "lanes of the sums": ("plain", "slab + lane / 4 * stride", "slab + lane % 8 * stride", "wrong"),
    "rows of A": ("plain", "lines(tile, first), lane % 16", "lines(tile, first), lane / 2", "wrong"),
    "fragments of B": ("plain", "left[1] = words[1];", "left[1] = words[2];", "wrong"),
}


@pytest.mark.parametrize(
    ("build", "correct", "wrong", "message"),
    [slow_unless_plain(*mutant) for mutant in MUTANTS.values()],
    ids=list(MUTANTS),
)
def test_mutant_is_noticed(build: str, correct: str, wrong: str, message: str, compiler: Compiler) -> None:
    status, printed = run(compiler.mutant(SOURCE, build, correct, wrong), seed=1)
    assert status != 0
    assert message in printed, printed[:2000]


def test_bank_conflicts_are_seen(compiler: Compiler) -> None:
    """Where the chunks of a line lie side by side."""
    plain = "chunk ^ (line / lines * turn % group)"
    status, printed = run(compiler.mutant(SOURCE, "plain", plain, "chunk"))
    assert status == 0
    assert int(re.findall(r"(\d+) conflicts", printed)[0]) > 0
