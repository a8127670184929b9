"""setup.py: what it does without a compiler, with one that fails, and when nothing has changed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dmao_kernels

ROOT = Path(__file__).resolve().parents[2]
COMPILER = next(filter(None, map(shutil.which, ["c++", "g++", "clang++"])), None)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "dmao_kernels", tmp_path / "dmao_kernels", ignore=ignored)
    return tmp_path


def setup(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "DMAO_NO_NATIVE")}
    environment.update({"DMAO_NO_CUDA": "1", **variables})
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PATH": "/nowhere"}, "no C++ compiler was found"),
        ({"CXX": "/nowhere/c++"}, "no C++ compiler was found"),
        ({"DMAO_NO_NATIVE": "1"}, "DMAO_NO_NATIVE=1 is set"),
    ],
    ids=str,
)
def test_installs_without_native_kernels(sources: Path, variables: dict[str, str], reason: str) -> None:
    run = setup(sources, "build", **variables)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("dmao_kernels: ")]
    assert len(lines) == 1
    assert lines[0].startswith(
        f"dmao_kernels: installing without native kernels (the reference backend will be used): {reason}"
    )
    assert (sources / "build/lib/dmao_kernels/__init__.py").exists()
    assert not list(sources.rglob("*.so"))


@pytest.mark.parametrize(
    ("named", "listed", "expected"),
    [
        ("", ["12.0", "9.0", "9.0", "7.5"], "90;120"),
        ("", [], ""),
        ("", ["[N/A]"], ""),
        ("all", ["9.0"], ""),
        ("90,80", ["12.0"], "80;90"),
    ],
)
def test_architectures(
    named: str, listed: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are named, else of the GPUs that are there, else all."""
    if listed:
        smi = tmp_path / "nvidia-smi"
        smi.write_text("#!/bin/sh\nprintf '" + "\\n".join(listed) + "\\n'\n")
        smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep if listed else None)
    monkeypatch.setenv("DMAO_CUDA_ARCHITECTURES", named)
    monkeypatch.setenv("DMAO_NO_NATIVE", "1")
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    assert runpy.run_path(str(ROOT / "setup.py"))["cuda_architectures"]() == expected


@pytest.mark.parametrize("named", ["90a", "75", "80;90", "80,", "everything"])
def test_unknown_architectures(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMAO_CUDA_ARCHITECTURES", named)
    monkeypatch.setenv("DMAO_NO_NATIVE", "1")
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    with pytest.raises(SystemExit, match=f"must be 'all' or a list such as 80,90 .*, found '{named}'"):
        runpy.run_path(str(ROOT / "setup.py"))["cuda_architectures"]()


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None or dmao_kernels.cpu_capability() is None, reason="needs a compiler")
def test_builds_once_and_fails_loudly(sources: Path) -> None:
    first = setup(sources, "build_ext", "--inplace")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "warning:" not in first.stdout
    assert (sources / "dmao_kernels/_ops.so").exists()
    again = setup(sources, "build_ext", "--inplace")
    assert again.returncode == 0
    assert "Building CXX" not in again.stdout
    with (sources / "csrc/cpu/importance.cpp").open("a") as file:
        file.write("nonsense\n")
    broken = setup(sources, "build_ext", "--inplace")
    assert broken.returncode != 0
    assert "nonsense" in broken.stdout
    assert "dmao_kernels: the native build failed" in broken.stderr
