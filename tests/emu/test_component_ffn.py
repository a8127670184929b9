"""component_ffn in CUDA C++, on the host: what Triton's kernels are asked for, and a program of its own."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, Compiler, check_right, slow_unless_plain
from tests.native.probe import ROOT
from tests.triton.test_component_ffn import (  # noqa: F401
    test_absent_biases,
    test_activations,
    test_agrees_with_the_native_kernels,
    test_bits_do_not_change_when_run_again,
    test_dropout_mask_is_the_reference_mask,
    test_few_live_components,
    test_ids_out_of_range_read_nothing_out_of_bounds,
    test_leading_dimensions_and_strides,
    test_live_subset_equals_the_shrunk_layer,
    test_nan_and_infinity_go_where_pytorch_puts_them,
    test_odd_sizes,
    test_only_the_gradient_that_is_wanted,
    test_sums_over_several_spans_of_tokens,
    test_training_step,
)

SOURCE = ROOT / "csrc/tests/cuda/component_ffn.cpp"


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build))
