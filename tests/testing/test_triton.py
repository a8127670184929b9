"""The quick tests of tests/triton, which need a process of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

pytest.importorskip("triton")


@pytest.mark.timeout(600)
def test_triton_kernels_in_the_interpreter(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """All of them, slow ones and another order of programs too: make test-interp."""
    run = run_python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/triton", TRITON_INTERPRET="1", INTERP_SEED="1"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
