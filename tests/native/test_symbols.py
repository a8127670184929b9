"""What the binaries need and define: the stable ABI only, and nothing that leaks between instruction sets."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import dmao_kernels

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(dmao_kernels.__file__).parent / "_ops.so"
KERNELS = sorted(path for path in (ROOT / "csrc/cpu").glob("*.cpp") if (ROOT / "csrc/ops" / path.name).exists())
COMPILER = next(filter(None, map(shutil.which, ["c++", "g++", "clang++"])), None)

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")


def symbols(path: Path, *options: str) -> list[str]:
    command = ["nm", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(not LIBRARY.exists(), reason="no native library")
def test_only_the_stable_abi_of_torch_is_used() -> None:
    undefined = symbols(LIBRARY, "-D", "-C", "--undefined-only")
    unstable = [line for line in undefined if re.search(r"\b(at|c10|torch|caffe2)::", line)]
    assert not unstable
    assert any("torch_parallel_for" in line for line in undefined)


@pytest.mark.skipif(not LIBRARY.exists() or shutil.which("readelf") is None, reason="needs the library and readelf")
def test_no_path_of_the_build_machine_is_searched() -> None:
    command = ["readelf", "-d", str(LIBRARY)]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert "libtorch_python" not in dynamic


@pytest.mark.skipif(COMPILER is None or platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 compiler")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.stem)
def test_kernel_defines_only_symbols_of_its_instruction_set(kernel: Path, tmp_path: Path) -> None:
    """Compiled unoptimised, so that each inline function leaves a symbol that the linker may share."""
    assert COMPILER is not None
    output = tmp_path / "kernel.o"
    command = [
        COMPILER,
        "-std=c++20",
        "-O0",
        "-mavx2",
        "-mfma",
        "-DDMAO_ISA_NAMESPACE=avx2",
        "-c",
        str(kernel),
    ]
    subprocess.run([*command, f"-I{ROOT}/csrc/include", "-o", str(output)], check=True)
    shared = [line[17:] for line in symbols(output, "-C", "--defined-only") if line[17] in "TWVuDBR"]
    assert shared
    leaks = [line for line in shared if "dmao::avx2::" not in line]
    assert not leaks, f"inline functions outside of DMAO_ISA_NAMESPACE: {leaks}"
