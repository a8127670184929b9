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
