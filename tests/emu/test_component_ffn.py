"""component_ffn in CUDA C++, on the host: what Triton's kernels are asked for, and a program of its own."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, Compiler, check_right, slow_unless_plain
from tests.emu.mutants import Mutant, check_noticed, each
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build))


MUTANTS = {
    "bit of dropout": Mutant("(i % 4 * 8 + shift)", "(i % 4 * 8)", "wrong: y"),
    "one byte of dropout": Mutant("(element / 16 % 8) & 1) != 0", "(element / 16 % 4) & 1) != 0", "wrong: y"),
    "hidden layer without dropout": Mutant(
        "drop(p, live, eight, row, values);\n        store_padded(p, p.hidden",
        "store_padded(p, p.hidden",
        "wrong: grad_w2",
    ),
    "a filler counts": Mutant("__ldg(ids + i) < things;", "__ldg(ids + i) <= things;", "wrong"),
    "neighbours": Mutant("static_cast<int>(width.value) % count == 0", "count > 0", "misaligned address", "memory"),
    "chunks of w2": Mutant(
        "layer.live.width.value) % kPerChunk<E> == 0", "layer.live.width.value) % 4 == 0", "not aligned"
    ),
    "quotient": Mutant("low + 1 : low", "low : low", "wrong"),
    "row of a unit": Mutant("rows_listed ? live.element(row) : row", "row", "wrong: grad_w1"),
    "behind the list": Mutant("clip(k, Axis::depth);", "", "wrong: y"),
    "slope": Mutant("h = fmaf(h * s, 1.0f - s, s);", "h = fmaf(h * s, 1.0f + s, s);", "wrong: grad_x"),
    "a unit too many": Mutant(
        "position < lines.end ? row_of(position)",
        "position <= lines.end ? row_of(position)",
        "the source is out of bounds",
        "memory",
    ),
    "two write bits": Mutant(
        "(before * width + width - 1) / 128 == first) return;",
        "(before * width + width - 1) / 128 == first) {}",
        "data race",
        "threads",
    ),
    "one part for all": Mutant(
        "static_cast<std::int64_t>(part) * round_up(columns, kEight) + at]", "at]", "data race", "threads"
    ),
}


@each(MUTANTS)
def test_mutant_is_noticed(mutant: Mutant, compiler: Compiler) -> None:
    check_noticed(compiler, SOURCE, mutant)
