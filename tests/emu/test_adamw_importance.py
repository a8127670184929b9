"""adamw_importance_ in CUDA C++, on the host: what Triton's kernel is asked for, and a program of its own."""

from __future__ import annotations

import pytest

from tests.emu.build import BUILDS, RIGHT, Compiler, check_right, slow_unless_plain
from tests.emu.mutants import Mutant, check_noticed, each
from tests.native.probe import ROOT
from tests.triton.test_adamw_importance import (  # noqa: F401
    test_all_shapes_in_one_launch,
    test_float16,
    test_many_steps_with_gradients_that_move,
    test_metrics_and_dtypes,
    test_mixed_dtypes,
    test_native_kernel_agrees,
    test_nothing_around_tensors_is_touched,
    test_only_scored,
    test_refused_values_change_nothing,
    test_scores_are_those_of_importance,
)

SOURCE = ROOT / "csrc/tests/cuda/adamw_importance.cpp"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build), RIGHT)


MUTANTS = {
    "behind the last column": Mutant(
        "if (count > piece.columns - column) count = piece.columns - column;", "", "wrong: parameter"
    ),
    "score of what is scaled": Mutant(
        "weight[i], grad[i]);\n            if (!updated)",
        "weight[i], factor.grad * grad[i]);\n            if (!updated)",
        "wrong: score",
    ),
    "factors of another parameter": Mutant("factors[entry.factors]", "factors[entry.end % 2]", "wrong: parameter"),
    "a step that is not counted": Mutant("done = *entry.step + 1.0f;", "done = *entry.step;", "wrong: parameter"),
    "steps behind the last one": Mutant("if (i >= table.count) return;", "", "wrong: parameter"),
    "steps of the first block": Mutant("static_cast<int>(blockIdx.x) * kStepThreads +", "", "wrong: parameter"),
    "a gradient that is not there": Mutant("updated || scoring.grad;", "true;", "AddressSanitizer", "memory"),
    "never maximizes": Mutant("entry.maximize != 0.0 ? -1.0 : 1.0", "1.0", "wrong: parameter"),
    "bias of the wrong beta": Mutant("1.0 - pow(entry.beta2", "1.0 - pow(entry.beta1", "wrong: parameter"),
    "rounds towards zero": Mutant("(bits + 0x7FFF + (bits >> 16 & 1)) >> 16", "bits >> 16", "wrong: parameter"),
    "stores behind the end": Mutant("if (i + k < count) p[i + k] =", "p[i + k] =", "overflow", "memory"),
    "sums of what is not scored": Mutant("if (piece.sums >= 0) store_sums", "store_sums", "wrong: "),
    "pieces that two blocks walk over": Mutant(
        "piece += static_cast<int>(gridDim.x)", "piece += 1", "data race", "threads"
    ),
}


@each(MUTANTS)
def test_mutant_is_noticed(mutant: Mutant, compiler: Compiler) -> None:
    check_noticed(compiler, SOURCE, mutant)
