"""CUDA kernels run on the host: right, the same in every order of threads, and no planted fault goes unnoticed."""

from __future__ import annotations

import re

import pytest

from tests.emu.build import BUILDS, Compiler, check_right, run, slow_unless_plain
from tests.native.probe import ROOT

SOURCE = ROOT / "csrc/tests/cuda_on_host/product.cpp"


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build), seeds=(0, 1, 2))


FAULTS = {
    "WEAK_WAIT": ("plain", "wrong: product, error -?nan"),
    "NO_BARRIER": ("threads", "data race"),
    "LANES": ("plain", "wrong: product"),
    "BOUND": ("memory", "cp.async: the source is out of bounds"),
    "OVERRUN": ("memory", "cp.async: the target is not inside of shared memory"),
    "NOT_ATOMIC": ("threads", "data race"),
    "DIVERGENT_BARRIER": ("plain", r"divergent barrier: some wait in line \d+, others in \d+"),
    "DIVERGENT_WARP": ("plain", "divergent warp"),
    "MASK": ("plain", "whose mask leaves it out"),
    "DEADLOCK": ("plain", "deadlock: 16 lanes of warp 0 wait for the others of ffffffff"),
}


@pytest.mark.parametrize(
    ("fault", "build", "message"), [slow_unless_plain(fault, *found) for fault, found in FAULTS.items()]
)
def test_planted_fault_is_noticed(fault: str, build: str, message: str, compiler: Compiler) -> None:
    status, printed = run(compiler(SOURCE, build, f"-DPLANTED_{fault}"), seed=1)
    assert status != 0
    assert re.search(message, printed), printed[:2000]


def test_bank_conflicts_are_counted(compiler: Compiler) -> None:
    """Without the swizzle rows of 64 bytes meet in the same banks: four turns for one."""
    _, printed = run(compiler(SOURCE, "plain", "-DPLANTED_CONFLICTS"))
    loads, conflicts = map(int, re.findall(r"(\d+) (?:ldmatrix|conflicts)", printed))
    assert conflicts == loads * 4 * 3
