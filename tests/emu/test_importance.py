"""importance_ in CUDA C++, on the host: what Triton's kernel is asked for, and programs of its own under sanitizers."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, Compiler, run, slow_unless_plain
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


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    program = compiler(SOURCE, build)
    for seed in (0, 1):
        assert run(program, seed) == (0, "right\n")


# build, what stands in the kernel, what takes its place, what is to be noticed
MUTANTS = {
    "no barrier before the sums of columns": (
        "threads",
        "__syncthreads();\n    const float* columns",
        "const float* columns",
        "data race",
    ),
    "no barrier before the next piece": ("threads", "__syncthreads();  // totals", "// totals", "data race"),
    "barrier of whole pieces only": (
        "plain",
        "__syncthreads();  // totals",
        "if (thread < piece.columns) __syncthreads();  //",
        "deadlock",
    ),
    "rows of the next warp": ("plain", "row += kPieceWarps)", "row += kPieceWarps - 1)", "wrong"),
    "behind the last row": ("memory", "count = piece.rest - begin", "count = piece.rest - begin + 1", "overflow"),
    "behind the columns": ("plain", "if (thread < piece.columns)", "if (thread <= piece.columns)", "wrong"),
    "a piece of the wrong tensor": ("plain", ".end <= piece)", ".end < piece)", "wrong"),
    "one order of lanes": ("plain", "parts[thread * 2 + 1]", "parts[thread * 2 ^ 1]", "wrong"),
    "all lanes take part, but one": (
        "plain",
        "for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, step);\n        if (lane == 0)",
        "for (int step = 16; step > 1; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, step);\n        if (lane == 0)",
        "wrong",
    ),
    "sums that are not carried on": ("plain", "sum += carried[0];", "", "wrong"),
    "every warp averages": ("threads", "component < all.components; component += warps", "component < 1; component += warps", ""),
    "a range too far": ("plain", "range.end <= component", "range.end < component", "wrong"),
    "an infinite mean": ("plain", "fabsf(mean) < std::numeric_limits<float>::infinity()", "true", "wrong"),
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
