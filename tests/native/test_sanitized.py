"""The CPU kernels on random problems under the sanitizers: address and undefined behaviour, and threads.

`make sanitize` runs all of it. Each csrc/tests/fuzz/<op>.cpp is built with csrc/cpu/<op>*.cpp.
"""

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
SANITIZERS = {
    "memory": (["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"], "1"),
    "threads": (["-fsanitize=thread"], "4"),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run_fuzzer(sources: list[Path], isa: str, sanitizer: str, folder: Path, problems: int = 200) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    best = dmao_kernels.cpu_capability()
    if COMPILER is None or best is None or CAPABILITIES.index(isa) > CAPABILITIES.index(best):
        pytest.skip(f"{isa} is not available here, or there is no compiler")
    flags, threads = SANITIZERS[sanitizer]
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n")
    program = folder / "fuzz"
    if subprocess.run([COMPILER, *flags, str(empty), "-o", str(program)], capture_output=True).returncode:
        pytest.skip(f"the compiler has no sanitizer for {sanitizer}")
    command = [COMPILER, "-std=c++20", "-O1", "-g", "-w", *flags, *FLAGS[isa]]
    command += [f"-I{ROOT}/csrc/include", f"-I{FUZZ}", f"-DDMAO_ISA_NAMESPACE={isa}", str(FUZZ / "main.cpp")]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    run = subprocess.run([str(program), str(problems), threads], capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("isa", CAPABILITIES)
@pytest.mark.parametrize("op", OPS)
def test_kernel_is_clean(op: str, isa: str, sanitizer: str, tmp_path: Path) -> None:
    sources = [FUZZ / f"{op}.cpp", *(ROOT / "csrc/cpu").glob(f"{op}*.cpp")]
    status, printed = run_fuzzer(sources, isa, sanitizer, tmp_path)
    assert (status, printed) == (0, "clean\n")


PLANTED = {
    "a write beyond the end": ("memory", "values[count] = 1.0f;", "heap-buffer-overflow"),
    "a signed overflow": ("memory", "total = INT32_MAX; total = total + 1;", "signed integer overflow"),
    "a race": ("threads", "parallel(count, 1, [&](std::int64_t, std::int64_t) { ++total; });", "data race"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_seen(fault: str, tmp_path: Path) -> None:
    sanitizer, statement, report = PLANTED[fault]
    source = tmp_path / "planted.cpp"
    source.write_text(
        '#include "fuzz.h"\n'
        "namespace dmao::fuzzing {\n"
        "void fuzz(const ParallelFor& parallel, std::int64_t) {\n"
        "    const std::int64_t count = 4;\n"
        "    const auto values = floats(count);\n"
        "    volatile int total = 1;\n"
        "    parallel(1, 1, [](std::int64_t, std::int64_t) {});\n"
        f"    {statement}\n"
        "}\n"
        "}\n"
    )
    status, printed = run_fuzzer([source], "portable", sanitizer, tmp_path)
    assert status != 0
    assert report in printed
