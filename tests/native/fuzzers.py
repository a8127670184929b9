"""Builds csrc/tests/fuzz/<op>.cpp, random problems of csrc/cpu/<op>*.cpp, for one instruction set."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import dmao_kernels
from tests.native.probe import CAPABILITIES, FLAGS, ROOT

FUZZ = ROOT / "csrc/tests/fuzz"
OPS = sorted(path.stem for path in FUZZ.glob("*.cpp") if path.stem != "main")
COMPILER = next(filter(None, map(shutil.which, ["c++", "g++", "clang++"])), None)


def require_compiler() -> str:
    if COMPILER is None:
        pytest.skip("there is no compiler")
    return COMPILER


def runs_here(isa: str) -> bool:
    best = dmao_kernels.cpu_capability()
    return best is not None and CAPABILITIES.index(isa) <= CAPABILITIES.index(best)


def sources(op: str) -> list[Path]:
    return [FUZZ / f"{op}.cpp", *(ROOT / "csrc/cpu").glob(f"{op}*.cpp")]


def build(sources: list[Path], isa: str, options: list[str], program: Path) -> Path:
    command = [require_compiler(), "-std=c++20", "-w", *options, *FLAGS[isa], f"-I{ROOT}/csrc/include", f"-I{FUZZ}"]
    command += [f"-DDMAO_ISA_NAMESPACE={isa}", str(FUZZ / "main.cpp"), *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    return program
