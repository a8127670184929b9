"""adamw_importance_ in CUDA C++, on the host: what Triton's kernel is asked for, and a program of its own."""

from __future__ import annotations

from tests.emu.build import Compiler, run
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


def test_right_in_any_order(compiler: Compiler) -> None:
    program = compiler(SOURCE, "plain")
    for seed in (0, 1):
        assert run(program, seed) == (0, "right\n")
