"""Builds CUDA kernels for the host, with csrc/cuda_on_host: programs (plain, or under a sanitizer), operations."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.native.fuzzers import require_compiler
from tests.native.probe import ROOT

RUNTIME = ROOT / "csrc/cuda_on_host"
KERNELS = ROOT / "csrc/cuda"
OPERATIONS = ROOT / "csrc/ops/cuda"
BUILT = ROOT / "build/cuda_on_host"


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
        options = [*BUILDS[build].runtime, "-fno-builtin", "-fno-tree-loop-distribute-patterns", "-fPIC"]
        _compile([*options, "-c", str(source), "-o", str(objects[-1])])
    return objects


def build_operations() -> Path:
    """The library of all operations of csrc/ops/cuda for tensors on the CPU; made again where a source has changed."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of test processes side by side
        sources = [source for folder in ("cuda", "cuda_on_host", "include/dmao", "ops") for source in _sources(folder)]
        state = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
        library = BUILT / f"operations-{state}.so"
        if not library.exists():
            for old in BUILT.glob("*.*"):
                old.unlink()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = list(pool.map(_compile_operation, sorted(OPERATIONS.glob("*.cu"))))
            objects = [*compile_runtime("plain", BUILT), *compiled]
            draft = library.with_suffix(".draft")
            _compile(["-shared", *map(str, objects), *_torch_libraries(), "-o", str(draft)])
            draft.rename(library)
    return library


def _sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / "csrc" / folder).rglob("*") if path.is_file())


def _compile_operation(source: Path) -> Path:
    target = BUILT / f"{source.stem}.o"
    includes = [f"-I{KERNELS}", "-isystem", str(Path(torch.__path__[0]) / "include")]
    options = ["-O2", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-DTORCH_STABLE_ONLY"]
    version = "-DTORCH_TARGET_VERSION=0x020d000000000000"
    _compile([*options, version, *includes, "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


def _torch_libraries() -> list[str]:
    return [str(Path(torch.__path__[0]) / "lib" / name) for name in ("libtorch_cpu.so", "libc10.so")]


class Compiler:
    """Compiles programs, and the runtime once per build."""

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._runtimes: dict[str, list[Path]] = {}

    def __call__(self, source: Path, build: str, *options: str, kernels: Path = KERNELS) -> Path:
        """The program of one source file, with the kernels of a folder."""
        if build not in self._runtimes:
            self._runtimes[build] = compile_runtime(build, self._new_folder())
        program = self._new_folder() / source.stem
        objects = map(str, self._runtimes[build])
        # #pragma unroll is nvcc's
        options = (*BUILDS[build].kernels, "-Wno-unknown-pragmas", f"-I{kernels}", *options)
        _compile([*options, str(source), *objects, "-o", str(program)])
        return program

    def mutant(self, source: Path, build: str, correct: str, wrong: str) -> Path:
        """The program with a piece of text replaced, which is there once, in it or in a kernel."""
        folder = self._new_folder() / "cuda"
        shutil.copytree(KERNELS, folder)
        shutil.copy(source, folder)
        texts = {file: file.read_text() for file in folder.iterdir()}
        found = [file for file, text in texts.items() for _ in range(text.count(correct))]
        assert len(found) == 1, f"{correct!r} is there {len(found)} times"
        found[0].write_text(texts[found[0]].replace(correct, wrong))
        return self(folder / source.name, build, kernels=folder)


def _compile(options: list[str]) -> None:
    includes = [f"-I{ROOT}/csrc/include", f"-I{ROOT}/csrc/tests/cuda_on_host"]
    subprocess.run([require_compiler(), "-std=c++20", "-Wall", "-Wextra", *includes, *options], check=True)


def run(program: Path, seed: int = 0) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=67:halt_on_error=1", "ASAN_OPTIONS": "exitcode=68"}
    done = subprocess.run([str(program), str(seed)], capture_output=True, text=True, timeout=800, env=environment)
    return done.returncode, done.stdout + done.stderr


RIGHT = r"right\n"
RIGHT_PRODUCTS = r"right: [1-9]\d* mma, [1-9]\d* ldmatrix, 0 conflicts\n"  # with matrix instructions


def check_right(program: Path, right: str = RIGHT_PRODUCTS, seeds: tuple[int, ...] = (0, 1)) -> None:
    """In every order of threads that the seeds shuffle it prints what the pattern ``right`` says."""
    for seed in seeds:
        status, printed = run(program, seed)
        assert status == 0, printed
        assert re.fullmatch(right, printed), printed


def slow_unless_plain(*values: str) -> object:
    """A parameter of a test; sanitizers take their time."""
    return pytest.param(*values, marks=[] if "plain" in values else [pytest.mark.slow])
