"""The quick tests of tests/triton, which need a process of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

pytest.importorskip("triton")


@pytest.mark.timeout(600)
def test_triton_kernels_in_the_interpreter(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The guard's own, and some of each operation; all of them, in two orders of programs: make test-interp."""
    some = "test_interpreter or native or training_step or test_by_hand or test_gradients"
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", some, "tests/triton")
    run = run_python(*arguments, TRITON_INTERPRET="1", INTERP_SEED="1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
