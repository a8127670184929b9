"""Shared by all tests: seeds, and how to run Python under another environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run_python() -> RunPython:
    """run_python(*arguments, NAME="value") runs this Python from the repository root with these variables.

    Variables that choose backends or capabilities (DMAO_*) are dropped unless given.
    """

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DMAO_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "python")])
        environment.update(variables)
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(params=("portable", "avx2", "avx512", "avx512_bf16"))
def run_on_capability(request: pytest.FixtureRequest, run_python: RunPython) -> Callable[..., None]:
    """run_on_capability(code) runs the code with the kernels of one instruction set, in a process of its own.

    The test is repeated for each set, and skipped where this CPU or build has not got it.
    """
    capability: str = request.param

    def run(code: str) -> None:
        found = "\nimport dmao_kernels\nprint(dmao_kernels.cpu_capability())"
        result = run_python("-c", code + found, DMAO_CPU_CAPABILITY=capability)
        if "does not support" in result.stderr or "must be one of" in result.stderr:
            pytest.skip(f"this CPU or build has no {capability}")
        assert result.returncode == 0, result.stderr
        assert result.stdout.split() == [capability]

    return run
