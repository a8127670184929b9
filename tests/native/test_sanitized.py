"""The CPU kernels on random problems under the sanitizers, `make sanitize`: address, undefined behaviour, threads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.native.fuzzers import OPS, build, require_compiler, runs_here, sources
from tests.native.probe import CAPABILITIES

SANITIZERS = {
    "memory": (["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"], "1"),
    "threads": (["-fsanitize=thread"], "4"),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run_fuzzer(sources: list[Path], isa: str, sanitizer: str, folder: Path, problems: int = 200) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    if not runs_here(isa):
        pytest.skip(f"{isa} is not available here")
    flags, threads = SANITIZERS[sanitizer]
    empty, program = folder / "empty.cpp", folder / "fuzz"
    empty.write_text("int main() {}\n")
    probe = [require_compiler(), *flags, str(empty), "-o", str(program)]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"the compiler has no sanitizer for {sanitizer}")
    build(sources, isa, ["-O1", "-g", *flags], program)
    run = subprocess.run([str(program), str(problems), threads], capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("isa", CAPABILITIES)
@pytest.mark.parametrize("op", OPS)
def test_kernel_is_clean(op: str, isa: str, sanitizer: str, tmp_path: Path) -> None:
    status, printed = run_fuzzer(sources(op), isa, sanitizer, tmp_path)
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
