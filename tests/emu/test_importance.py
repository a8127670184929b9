"""importance_ in CUDA C++, on the host: what Triton's kernel is asked for, and programs of its own under sanitizers."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, RIGHT, Compiler, check_right, run, slow_unless_plain
from tests.emu.mutants import Mutant, check_noticed, each
from tests.native.probe import ROOT
from tests.triton.test_importance import (  # noqa: F401
    test_addresses_that_vectors_cannot_read,
    test_all_shapes_in_one_launch,
    test_bad_gradient_keeps_that_component_only,
    test_dtypes,
    test_empty,
    test_mixed_dtypes,
    test_native_kernel_agrees,
    test_non_contiguous_inputs,
    test_nothing_around_tensors_is_read,
    test_two_tensors_of_one_component,
    test_without_gradients,
    test_wrong_segment_changes_nothing,
)

PROGRAMS = ROOT / "csrc/tests/cuda"
SOURCE = PROGRAMS / "importance.cpp"


def test_pieces_cover_every_entry_once(compiler: Compiler) -> None:
    assert run(compiler(PROGRAMS / "pieces.cpp", "plain")) == (0, "right\n")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build), RIGHT)


MUTANTS = {
    "another tensor": Mutant(".end <= piece)", ".end < piece)", "wrong"),
    "no barrier before the sums": Mutant(
        "__syncthreads();\n    const float* columns", "const float* columns", "data race", "threads"
    ),
    "no barrier before the next piece": Mutant("__syncthreads();  // totals", "// totals", "data race", "threads"),
    "rows of another warp": Mutant("row += kPieceWarps)", "row += kPieceWarps - 1)", "wrong"),
    "behind the last row": Mutant("count = piece.rest - begin", "count = piece.rest - begin + 1", "overflow", "memory"),
    "sums of another column": Mutant(
        "if (thread < piece.columns) {", "if (thread <= piece.columns) {", "data race", "threads"
    ),
    "sums that are not carried on": Mutant("sum += carried[0];", "", "wrong"),
    "a range too far": Mutant("range.end <= component", "range.end < component", "wrong"),
    "ranges that are not reached": Mutant("range.reach <= component", "range.end <= component", "wrong"),
    "an infinite mean": Mutant("fabsf(mean) < std::numeric_limits<float>::infinity()", "true", "wrong"),
    "every lane writes": Mutant("if (lane != 0) continue;", "", "data race", "threads"),
}


@each(MUTANTS)
def test_mutant_is_noticed(mutant: Mutant, compiler: Compiler) -> None:
    check_noticed(compiler, SOURCE, mutant)
