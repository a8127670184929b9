"""One version, in one place; what an index would show of the package."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dmao.__main__ import main as entry
from dmao.cli import main
from packaging.metadata import Metadata

import dmao_kernels
from tests.packaging.contents import ROOT
from tests.packaging.interpreters import VERSIONS

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
RELEASE = re.compile(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)")


@pytest.fixture(scope="module")
def metadata(plain_wheel: Path) -> Message:
    with zipfile.ZipFile(plain_wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    Metadata.from_email(text, validate=True)
    return Parser().parsestr(text)


def test_version(metadata: Message, plain_wheel: Path) -> None:
    assert metadata["Version"] == dmao_kernels.__version__
    assert plain_wheel.name.startswith(f"dmao_kernels-{dmao_kernels.__version__}-")
    assert importlib.metadata.version("dmao-kernels") == dmao_kernels.__version__, "installed anew: make setup"
    printed = CliRunner().invoke(main, ["--version"], prog_name="dmao").output
    assert printed == f"dmao, version {dmao_kernels.__version__}\n"


def test_version_stands_in_one_place() -> None:
    places = [ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / "CMakeLists.txt", *ROOT.glob("python/**/*.py")]
    places += (ROOT / "dmao_kernels").rglob("*.py")
    found = [path.name for path in places if f'"{dmao_kernels.__version__}"' in path.read_text(encoding="utf-8")]
    assert found == ["_version.py"]


def test_changelog() -> None:
    """What is not released yet comes first; then this version, dated, and what was before it."""
    headings = re.findall(r"^## (.*)$", CHANGELOG, flags=re.M)
    assert headings[0] == "Unreleased"
    releases = [RELEASE.fullmatch(heading) for heading in headings[1:]]
    assert all(releases), headings
    versions = [tuple(map(int, release[1].split("."))) for release in releases if release]
    assert versions == sorted(versions, reverse=True)
    assert releases[0] is not None
    assert releases[0][1] == dmao_kernels.__version__
    dates = [datetime.date.fromisoformat(release[2]) for release in releases if release]
    assert dates == sorted(dates, reverse=True)
    assert set(re.findall(r"^### (.*)$", CHANGELOG, flags=re.M)) <= SECTIONS


def test_what_an_index_shows(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert metadata["Requires-Python"] == f">={VERSIONS[0]}"
    classifiers = metadata.get_all("Classifier", [])
    assert [name for name in classifiers if name.startswith("License ::")] == []  # the expression says it
    named = {name.rpartition(" ")[2] for name in classifiers if re.search(r"Python :: 3\.\d", name)}
    assert named == set(VERSIONS)
    assert "Typing :: Typed" in classifiers
    assert len(metadata["Summary"]) < 120
    assert metadata["Keywords"]


def test_licence_and_command_are_in_the_wheel(plain_wheel: Path) -> None:
    with zipfile.ZipFile(plain_wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        (entries,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        named = archive.read(entries).decode().split()
    assert named == ["[console_scripts]", "dmao", "=", f"{entry.__module__}:{entry.__name__}"]


@pytest.mark.parametrize(("package", "arguments"), [("click", ""), ("yaml", "memory librispeech/conformer_256")])
def test_command_without_its_packages(package: str, arguments: str, run_python: RunPython) -> None:
    """Installed without the extra: the last line says what to type, whether it lacks before or in a command."""
    code = f"import sys; sys.modules[{package!r}] = None; from dmao.__main__ import main; main()"
    done = run_python("-c", code, *arguments.split())
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"dmao: error: {package} is not installed: pip install 'dmao-kernels[recipes]'\n"


def test_defects_are_not_taken_for_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dmao.cli", None)
    with pytest.raises(ModuleNotFoundError):
        entry()
    assert isinstance(main, click.Group)
