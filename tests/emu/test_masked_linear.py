"""masked_linear in CUDA C++, on the host: what Triton's kernels are asked for, and a program of its own."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, Compiler, check_right, run, slow_unless_plain
from tests.native.probe import ROOT
from tests.triton.test_masked_linear import (  # noqa: F401
    test_a_full_mask_is_no_mask,
    test_activations,
    test_agrees_with_the_native_kernels,
    test_all_blocks,
    test_bits_do_not_change_when_run_again,
    test_extreme_masks,
    test_leading_dimensions_and_strides,
    test_lists_out_of_range_read_nothing_out_of_bounds,
    test_odd_sizes,
    test_only_the_gradient_that_is_wanted,
    test_sums_over_several_spans_of_tokens,
    test_training_step,
)

PROGRAMS = ROOT / "csrc/tests/cuda"
SOURCE = PROGRAMS / "masked_linear.cpp"


def test_tiles_and_spans(compiler: Compiler) -> None:
    assert run(compiler(PROGRAMS / "linear_tiles.cpp", "plain")) == (0, "right\n")


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build))
