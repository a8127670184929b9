"""Where NVIDIA's headers are that tests compare with: those of the CUDA runtime, and CuTe (requirements/cuda.txt)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.native.probe import ROOT


def require_cuda_headers() -> list[str]:
    """Options of a compiler; skips the test where they are not there."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    beside = [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    folder = _first([*beside, *_packaged("nvidia/cu*/include")], "cuda_occupancy.h")
    return [f"-isystem{folder}", f"-isystem{folder}/cccl"]


def require_cutlass() -> list[str]:
    """The same for CUTLASS, which has CuTe."""
    return [f"-isystem{_first(_packaged('cutlass_library/source/include'), 'cute/tensor.hpp')}"]


def _packaged(pattern: str) -> list[Path]:
    """Folders of packages, of this Python's and of those that `make wheel` installs for its compiler."""
    tools = (ROOT / ".venv-cuda").glob("lib/python3*/site-packages")
    return [found for folder in [*map(Path, sys.path), *tools] for found in sorted(folder.glob(pattern))]


def _first(folders: list[Path], header: str) -> Path:
    found = next((folder for folder in folders if (folder / header).exists()), None)
    if found is None:
        pytest.skip(f"there is no {header}: pip install -r requirements/cuda.txt")
    return found
