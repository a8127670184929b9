"""The CPU kernels on random problems, built with the address and the undefined-behaviour sanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import dmao_kernels
from tests.native.test_simd import COMPILER, FLAGS, ROOT


@pytest.mark.slow
@pytest.mark.parametrize("isa", list(FLAGS))
def test_kernels_stay_inside_their_memory(isa: str, tmp_path: Path) -> None:
    best = dmao_kernels.cpu_capability()
    if COMPILER is None or best is None or list(FLAGS).index(isa) > list(FLAGS).index(best):
        pytest.skip(f"{isa} is not available here, or there is no compiler")
    probe = tmp_path / "probe"
    sources = [f"{ROOT}/csrc/{name}.cpp" for name in ("tests/sanitized", "cpu/component_ffn", "cpu/importance")]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    command = [COMPILER, "-std=c++20", "-O1", "-g", *sanitize, *FLAGS[isa], f"-I{ROOT}/csrc/include"]
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    if subprocess.run([COMPILER, *sanitize, str(empty), "-o", str(probe)], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    subprocess.run([*command, f"-DDMAO_ISA_NAMESPACE={isa}", *sources, "-o", str(probe)], check=True)
    run = subprocess.run([str(probe)], capture_output=True, text=True)
    assert (run.stdout, run.stderr, run.returncode) == ("clean\n", "", 0)
