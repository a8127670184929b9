"""The dropout mask of the CUDA C++ kernels is that of the CPU, bit for bit."""

from __future__ import annotations

import pytest

from tests.emu.build import Compiler, run
from tests.native.probe import ROOT

SOURCE = ROOT / "csrc/tests/cuda/philox.cpp"


def test_same_bits_as_on_the_cpu(compiler: Compiler) -> None:
    assert run(compiler(SOURCE, "plain")) == (0, "right\n")


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ("< kPhiloxRounds", "< kPhiloxRounds - 1"),
        ("part % 2 == 0 ? even", "part % 2 == 1 ? even"),
        ("<< (i + 4)", "<< (i + 3)"),
    ],
)
def test_mutant_is_noticed(correct: str, wrong: str, compiler: Compiler) -> None:
    status, printed = run(compiler.mutant(SOURCE, "plain", correct, wrong))
    assert status != 0
    assert printed.startswith("wrong")
