"""Builds programs of CUDA kernels for the host, with csrc/cuda_on_host, plain or under a sanitizer."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.native.fuzzers import require_compiler
from tests.native.probe import ROOT

RUNTIME = ROOT / "csrc/cuda_on_host"
PROGRAMS = ROOT / "csrc/tests/cuda_on_host"
INCLUDES = [f"-I{ROOT / folder}" for folder in ("csrc/include", "csrc/cuda")]


@dataclass(frozen=True)
class Build:
    """Options of the kernels, and of the runtime, which is never instrumented (see sanitizers.h)."""

    kernels: tuple[str, ...] = ("-O2",)
    runtime: tuple[str, ...] = ("-O2",)


BUILDS = {
    "plain": Build(),
    "memory": Build(
        ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"), ("-O1", "-DDMAO_HOST_ASAN")
    ),
    "threads": Build(("-O1", "-g", "-fsanitize=thread"), ("-O1", "-DDMAO_HOST_TSAN")),
}


def compile_runtime(build: str, folder: Path) -> list[Path]:
    """The object files of the runtime."""
    objects = []
    for source in sorted(RUNTIME.glob("*.cpp")):
        objects.append(folder / f"{source.stem}.o")
        options = [*BUILDS[build].runtime, "-fno-builtin", "-fno-tree-loop-distribute-patterns"]
        _compile([*options, "-c", str(source), "-o", str(objects[-1])])
    return objects


def compile_program(source: Path, build: str, runtime: list[Path], program: Path, *options: str) -> Path:
    """One source file with the runtime."""
    _compile([*BUILDS[build].kernels, *options, str(source), *map(str, runtime), "-o", str(program)])
    return program


def _compile(options: list[str]) -> None:
    subprocess.run([require_compiler(), "-std=c++20", "-Wall", "-Wextra", *INCLUDES, *options], check=True)


def run(program: Path, seed: int = 0) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=67", "ASAN_OPTIONS": "exitcode=68"}
    done = subprocess.run([str(program), str(seed)], capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout + done.stderr
