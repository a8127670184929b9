"""Compiles csrc/tests/<name>_probe.cpp, which has headers of csrc/cpu as plain C functions, for one instruction set."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import dmao_kernels

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
FLAGS["avx512_bf16"] = [*FLAGS["avx512"], "-mavx512bf16"]
CAPABILITIES = list(FLAGS)


def build_probe(name: str, capability: str, folder: Path) -> ctypes.CDLL | None:
    """None: there is no compiler or no native library, or this machine does not have the instruction set."""
    best = dmao_kernels.cpu_capability()
    compiler = next(filter(None, map(shutil.which, ["c++", "g++", "clang++"])), None)
    if compiler is None or best is None or CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        return None
    library = folder / f"{name}_{capability}.so"
    command = [compiler, "-std=c++20", "-O3", "-w", "-shared", "-fPIC", *FLAGS[capability]]
    command += [f"-I{ROOT}/csrc/include", f"-DDMAO_ISA_NAMESPACE={capability}"]
    subprocess.run([*command, str(ROOT / f"csrc/tests/{name}_probe.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
