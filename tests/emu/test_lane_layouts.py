"""Which lane has what of a matrix: the host's mma.sync and ldmatrix against CuTe's description of the instructions.

That tiles of csrc/cuda/products.cuh fit to them is what test_products.py checks.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.emu.build import Compiler, run
from tests.emu.headers import require_cuda_headers, require_cutlass
from tests.native.fuzzers import require_compiler
from tests.native.probe import ROOT

SOURCE = ROOT / "csrc/tests/cuda/lane_layouts.cpp"


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cute_layouts.h, which CuTe's traits were printed into."""
    options = [*require_cutlass(), *require_cuda_headers()]
    folder = tmp_path_factory.mktemp("layouts")
    program = folder / "cute_layouts"
    source = ROOT / "csrc/tests/cuda_headers/cute_layouts.cpp"
    subprocess.run([require_compiler(), "-std=c++20", "-w", *options, str(source), "-o", str(program)], check=True)
    status, printed = run(program)
    assert status == 0
    (folder / "cute_layouts.h").write_text(printed)
    return folder


def test_fragments_are_those_of_cute(layouts: Path, compiler: Compiler) -> None:
    assert run(compiler(SOURCE, "plain", f"-I{layouts}")) == (0, "right\n")


ARRAYS = ("kA16", "kB16", "kC16", "kA8", "kB8", "kC8", "kRows", "kColumns")


@pytest.mark.parametrize("array", [ARRAYS[0], *(pytest.param(array, marks=pytest.mark.slow) for array in ARRAYS[1:])])
def test_another_layout_is_noticed(array: str, layouts: Path, compiler: Compiler, tmp_path: Path) -> None:
    """Two values of the first lane change places."""
    text = (layouts / "cute_layouts.h").read_text()
    other = re.sub(rf"(int {array}.*\n    {{)(\d+), (\d+)", r"\1\3, \2", text)
    assert other != text
    (tmp_path / "cute_layouts.h").write_text(other)
    status, printed = run(compiler(SOURCE, "plain", f"-I{tmp_path}"))
    assert status == 1
    assert printed.startswith("wrong: product" if array[-1].isdigit() else "wrong: ")
