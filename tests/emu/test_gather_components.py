"""gather_components in CUDA C++, on the host: what Triton's kernel is asked for, and a program under sanitizers."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, RIGHT, Compiler, check_right, slow_unless_plain
from tests.emu.mutants import Mutant, check_noticed, each
from tests.native.probe import ROOT
from tests.triton.test_gather_components import (  # noqa: F401
    test_bits_are_kept,
    test_by_hand,
    test_index_out_of_range,
    test_inputs_that_vectors_cannot_read,
    test_mixed_dtypes_and_one_index_for_many,
    test_no_tensors_and_no_components,
    test_nothing_around_tensors_is_read,
    test_nothing_given,
)

SOURCE = ROOT / "csrc/tests/cuda/gather_components.cpp"


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build), RIGHT)


MUTANTS = {
    "a quad across components": Mutant("sources.left >= kPerQuad<E>", "sources.left >= 1", "wrong: tensor"),
    "a whole last quad": Mutant("if (count == kPerQuad<E>) {  // new", "if (true) {  // new", "overflow", "memory"),
    "rows of another index": Mutant("rows + entry.first_row", "rows", "wrong: tensor"),
    "too many rows": Mutant("if (i < table.count) rows[i]", "rows[i]", "overflow", "memory"),
    "repeats of the new tensor": Mutant("place(x, old_components, row", "place(x, components, row", "wrong: tensor"),
    "a given one that is not there": Mutant("return i < 0 ? nullptr :", "return", "AddressSanitizer", "memory"),
    "where the piece begins": Mutant("static_cast<std::uint32_t>(first % entry.run)", "0", "wrong: tensor"),
    "bits of two elements": Mutant(
        "quad.words[i / 2] |= static_cast<unsigned>(value.bits) << i % 2 * 16",
        "quad.words[i / 2] = static_cast<unsigned>(value.bits) << i % 2 * 16",
        "wrong: tensor",
    ),
    "pieces that two blocks walk over": Mutant(
        "piece += static_cast<int>(gridDim.x)", "piece += 1", "data race", "threads"
    ),
}


@each(MUTANTS)
def test_mutant_is_noticed(mutant: Mutant, compiler: Compiler) -> None:
    check_noticed(compiler, SOURCE, mutant)
