"""The documents about the tree agree with the tree: DESIGN.md names every part, ADDING_AN_OP.md quotes real code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DESIGN = (ROOT / "docs/DESIGN.md").read_text(encoding="utf-8")
WALK = (ROOT / "docs/ADDING_AN_OP.md").read_text(encoding="utf-8")
QUOTED = re.compile(r"```(?:python|cpp)\n(?:#|//) (\S+)\n(.*?)```", flags=re.S)


def parts_of(folder: str) -> set[str]:
    """Modules and packages that lie in a folder."""
    found = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in found} - {"__init__"}


@pytest.mark.parametrize("folder", ["dmao_kernels/structure", "python/dmao", "python/dmao/data"])
def test_the_tables_of_the_design_name_every_module(folder):
    tables = "\n".join(line for line in DESIGN.splitlines() if line.startswith("|"))
    named = {word for span in re.findall(r"`([^`]+)`", tables) for word in re.findall(r"\w+", span)}
    missing = parts_of(folder) - named
    assert not missing, f"docs/DESIGN.md does not name {sorted(missing)} of {folder}"


def quotations() -> list[tuple[str, list[str]]]:
    return [(path, [line for line in code.splitlines() if line.strip()]) for path, code in QUOTED.findall(WALK)]


def test_the_walk_quotes_every_layer():
    paths = {path for path, _ in quotations()}
    assert len(paths) == 7
    assert {Path(path).suffix for path in paths} == {".py", ".h", ".cpp"}


@pytest.mark.parametrize(("path", "lines"), quotations(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_walk_quotes_what_is_there(path, lines):
    """Line by line, in their order; lines may be left out."""
    source = iter((ROOT / path).read_text(encoding="utf-8").splitlines())
    for line in lines:
        assert any(line == found for found in source), f"{path} has no line (any more, or here): {line.strip()}"


def test_the_table_of_the_walk_names_files_that_are_there():
    table = [line for line in WALK.splitlines() if line.startswith("| `")]
    named = [path for line in table for path in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
