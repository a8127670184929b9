"""What the operations would launch on a GPU that is not there: launches are written down, not run."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dmao_kernels import use_backend
from dmao_kernels.testing.gpus import GPU


@dataclass(frozen=True)
class Launch:
    """Of one kernel; shared: bytes of dynamic shared memory."""

    name: str  # as in names_of
    threads: int
    shared: int


def names_of(symbols: list[str]) -> list[str]:
    """Of kernels, without namespaces and the types of their parameters, which on the host are others."""
    shown = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return [_short(name) for name in shown.splitlines()]


def _short(shown: str) -> str:
    """The name with its template arguments, of what c++filt says."""
    shown = re.sub(r"\bdmao::|\bcuda::|^void |\(\w+\)|\(dmao::\w+\)", "", shown.replace("(anonymous namespace)::", ""))
    depth = 0
    for i, letter in enumerate(shown):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return shown[:i]
    return shown


@contextmanager
def _variables(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def recorded(problem: Callable[[], None], gpu: GPU, library: Path, file: Path) -> list[Launch]:
    """The launches of a problem on a GPU, every one once, in order; float32 may be multiplied in TF32."""
    file.write_text("")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        described = _variables(DMAO_CUDA_LAUNCHES=str(file), DMAO_CUDA_GPU=f"{gpu.arch},{gpu.processors}")
        with described, use_backend("cuda-emulated"):
            problem()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    symbols = _symbols(library)
    found = [line.split() for line in file.read_text().splitlines()]
    names = names_of([symbols[int(at, 16)] for at, _, _ in found])
    return list(
        dict.fromkeys(
            Launch(name, int(threads), int(shared)) for name, (_, threads, shared) in zip(names, found, strict=True)
        )
    )


def _symbols(library: Path) -> dict[int, str]:
    listed = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
    return {int(at, 16): symbol for at, symbol in re.findall(r"^([0-9a-f]+) [tTwW] (\w+)$", listed, re.M)}
