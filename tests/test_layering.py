"""The house stands as drawn: imports go one way, csrc <- dmao_kernels <- dmao <- {tests, benchmarks}."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "dmao_kernels": {"dmao", "benchmarks", "tests"},
    "python/dmao": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
}
# What the parts of the library may import of each other, besides their own.
PARTS = {
    "_version": set(),
    "layout": set(),
    "block_mask": set(),
    "gpu_choice": set(),
    "families": {"layout"},
    "_library": {"_version"},
    "dispatch": {"_library", "gpu_choice"},
    "info": {"_version", "dispatch", "gpu_choice"},
    "ops": {"_library", "block_mask", "dispatch"},
    "nn": {"block_mask", "families", "layout", "ops"},
    "structure": {"block_mask", "families", "layout", "ops"},
    "swaps": {"nn", "ops", "structure"},
    "plain": {"nn", "ops", "structure", "swaps"},
}
TRITON_KERNELS = re.compile(r"dmao_kernels/ops/(_triton/|\w+/(triton|_\w+)\.py)")
PUBLIC_OF_KERNELS = re.compile(r"dmao_kernels(\.(?!_)\w+)*$")


def imports(source: str, filename: str = "<text>") -> set[str]:
    """Absolute dotted names of all imported modules, wherever in the file the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source, filename)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder):
    for path in python_files(folder):
        found = top(imports(path.read_text(), str(path))) & FORBIDDEN[folder]
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def parts_used(source: str) -> set[str]:
    """The parts of the library that are imported, `from dmao_kernels import nn` included."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    direct = {alias.name for node in nodes if node.module == "dmao_kernels" for alias in node.names}
    return (
        direct | {name.split(".")[1] for name in imports(source) if name.startswith("dmao_kernels.")}
    ) & PARTS.keys()


def test_parts_of_the_library_know_what_is_below_them():
    library = ROOT / "dmao_kernels"
    found = {path.relative_to(library).parts[0].removesuffix(".py") for path in python_files("dmao_kernels")}
    assert found == {*PARTS, "__init__", "testing"}
    for path in python_files("dmao_kernels"):
        place = path.relative_to(library)
        part = place.parts[0].removesuffix(".py")
        allowed = {*PARTS, "testing"} if part in ("__init__", "testing") else PARTS[part]
        wrong = parts_used(path.read_text()) - allowed - {part}
        assert not wrong, f"{place} imports {sorted(wrong)}"


def test_library_needs_only_torch():
    for path in python_files("dmao_kernels"):
        place = path.relative_to(ROOT).as_posix()
        allowed = {"torch"}
        if place.startswith("dmao_kernels/testing/"):
            allowed |= {"numpy", "triton"}
        if TRITON_KERNELS.match(place):
            allowed |= {"triton"}
        foreign = top(imports(path.read_text(), str(path))) - allowed - {"dmao_kernels"} - sys.stdlib_module_names
        assert not foreign, f"{place} imports {sorted(foreign)}"


def test_callers_use_the_public_side_of_the_library():
    for path in python_files("python/dmao"):
        names = {name for name in imports(path.read_text(), str(path)) if name.split(".")[0] == "dmao_kernels"}
        private = {name for name in names if not PUBLIC_OF_KERNELS.match(name)}
        assert not private, f"{path.relative_to(ROOT)} imports {sorted(private)}"


@pytest.mark.parametrize("folder", ["dmao_kernels", "python/dmao"])
def test_imports_are_absolute(folder):
    """One style; and the tests here read absolute names only."""
    for path in python_files(folder):
        nodes = ast.walk(ast.parse(path.read_text(), str(path)))
        relative = [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
        assert not relative, f"{path.relative_to(ROOT)}: relative imports in lines {relative}"


def cpp_files(*folders: str) -> list[Path]:
    return [path for name in folders for path in sorted((ROOT / "csrc" / name).rglob("*")) if path.is_file()]


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.M)


def test_kernels_are_free_of_torch():
    for path in cpp_files("cpu", "include", "host"):
        found = [name for name in includes(path) if name.startswith(("torch/", "ATen/", "c10/", "caffe2/"))]
        assert not found, f"{path.relative_to(ROOT)} includes {found}"


def test_operations_use_the_stable_abi_only():
    allowed = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/")
    for path in cpp_files("."):
        found = [name for name in includes(path) if name.startswith(("torch/", "ATen/", "c10/", "caffe2/"))]
        wrong = [name for name in found if not name.startswith(allowed)]
        assert not wrong, f"{path.relative_to(ROOT)} includes {wrong}"


def test_kernels_do_not_include_the_operations():
    for path in cpp_files("cpu", "include"):
        found = [name for name in includes(path) if "ops/" in name or "host/" in name]
        assert not found, f"{path.relative_to(ROOT)} includes {found}"


def test_the_reading_of_imports_sees_all_forms():
    source = "import a.b, c as d\nfrom e.f import g\nfrom . import h\ndef x():\n    import i\n"
    assert imports(source) == {"a.b", "c", "e.f", "i"}
    assert parts_used("from dmao_kernels import nn, pack\nfrom dmao_kernels.ops.packing import api\n") == {"nn", "ops"}
