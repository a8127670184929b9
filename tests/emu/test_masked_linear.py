"""masked_linear in CUDA C++, on the host: what Triton's kernels are asked for, and a program of its own."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, Compiler, check_right, run, slow_unless_plain
from tests.emu.mutants import Mutant, check_noticed, each
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
    test_relu_hands_on_the_gradient_of_nan,
    test_sums_over_several_spans_of_tokens,
    test_training_step,
)

PROGRAMS = ROOT / "csrc/tests/cuda"
SOURCE = PROGRAMS / "masked_linear.cpp"


def test_tiles_and_spans(compiler: Compiler) -> None:
    assert run(compiler(PROGRAMS / "linear_tiles.cpp", "plain")) == (0, "right\n")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build))


MUTANTS = {
    "last step": Mutant("(k.end - k.begin + step - 1) / step", "(k.end - k.begin) / step", "wrong: pre-activation"),
    "line of the list": Mutant("line = index / parts;", "line = 0;", "wrong: pre-activation"),
    "end of a block": Mutant("end < size ? end : size", "size", "wrong: "),
    "gates": Mutant("? at : p.gates + at", "? at : at", "wrong: pre-activation"),
    "sum of planes": Mutant("sums[i] += part[i];", "sums[i] = part[i];", "wrong: grad_w"),
    "lanes of the slab": Mutant("slab + lane / 4 * stride + j * 8", "slab + lane % 8 * stride + j * 8", "wrong"),
    "weak wait": Mutant("async_wait<kStages - 2>", "async_wait<kStages - 1>", "not been waited for"),
    "divergent barrier": Mutant(
        "__syncthreads();\n    float sum",
        "if (line < 4) __syncthreads();\n    else\n        __syncthreads();\n    float sum",
        "divergent barrier",
    ),
    "half a warp": Mutant("__syncwarp();  // the slab is there", "if (lane < 16) __syncwarp();", "deadlock"),
    "a token too many": Mutant(
        "i * kApart < left_ && (!gathered", "i * kApart <= left_ && (!gathered", "the source is out of bounds", "memory"
    ),
    "last block": Mutant("(!gathered || rows[i] < live_.elements)", "true", "wrong: grad_x"),
    "too little shared memory": Mutant(
        "DMAO_SHARED(float, sums, kSumColumns* down)",
        "DMAO_SHARED(float, sums, kSumColumns)",
        "AddressSanitizer",
        "memory",
    ),
    "no barrier before results": Mutant("__syncthreads();  // nobody reads", "// nobody reads", "data race", "threads"),
    "slab read too early": Mutant("__syncwarp();  // the slab is there", "", "data race", "threads"),
    "slab written too early": Mutant("__syncwarp();  // the slab may be written again", "", "data race", "threads"),
    "one plane for all": Mutant(
        "static_cast<std::int64_t>(blockIdx.y) * p.rows + row;", "row;", "data race", "threads"
    ),
}


@each(MUTANTS)
def test_mutant_is_noticed(mutant: Mutant, compiler: Compiler) -> None:
    check_noticed(compiler, SOURCE, mutant)
