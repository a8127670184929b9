"""Whatever is installed is pinned, and its licence is on the page."""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging import licences
from tests.packaging.contents import ROOT

REQUIREMENTS = ROOT / "requirements"
PINNED = ("constraints.txt", "triton.txt")
ALL_PACKAGES = pytest.mark.skipif(
    not (3, 11) <= sys.version_info[:2] < (3, 13), reason="for Python 3.10 and 3.13 some packages are others"
)


def pins(*names: str) -> dict[str, Requirement]:
    lines = [
        line.partition("#")[0].strip() for name in names for line in (REQUIREMENTS / name).read_text().splitlines()
    ]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    assert len(found) == len({pin.name for pin in found}), "a package is named twice"
    return {canonicalize_name(pin.name): pin for pin in found}


@pytest.fixture(scope="module")
def installed() -> dict[str, Distribution]:
    """Of CUDA builds of PyTorch, which name the version of Triton, without that."""
    found = licences.installed()
    if any(name.startswith("nvidia-") for name in found):
        found.pop("triton", None)
    return found


@ALL_PACKAGES
def test_all_that_is_installed_is_pinned(installed: dict[str, Distribution]) -> None:
    pinned = pins(*PINNED)
    assert sorted(installed.keys() - pinned.keys()) == []
    wrong = [
        f"{name} {package.version}, not {pinned[name].specifier}"
        for name, package in installed.items()
        if not pinned[name].specifier.contains(package.version)
    ]
    assert wrong == [], "make setup"


def test_pins_are_exact() -> None:
    for name, pin in pins(*PINNED).items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), name
    for name in ("docs.txt", "integrations.txt", "zoo.txt"):
        exact = [pin for pin in pins(name).values() if str(pin.specifier).startswith("==")]
        rest = pins(name).keys() - {canonicalize_name(pin.name) for pin in exact}
        assert rest <= pins("constraints.txt").keys(), f"{name}: neither here nor in constraints.txt: {sorted(rest)}"


@ALL_PACKAGES
def test_nothing_is_pinned_that_is_not_installed(installed: dict[str, Distribution]) -> None:
    wanted = {name for name, pin in pins("constraints.txt").items() if not pin.marker or pin.marker.evaluate()}
    wanted = {name for name in wanted if not licences.ELSEWHERE.fullmatch(name)}  # for CUDA builds of PyTorch
    assert sorted(wanted - installed.keys()) == []


@ALL_PACKAGES
def test_page_of_licences() -> None:
    """Row by row: where PyTorch is a CUDA build some packages are others."""
    shown = set(licences.PAGE.read_text(encoding="utf-8").partition(licences.HEAD)[2].splitlines())
    made = set(licences.page().partition(licences.HEAD)[2].splitlines())
    assert made == shown, "make licences"
    unknown = [name for name, (found, _) in licences.rows().items() if not found]
    assert unknown == []
    assert [name for name, (_, use) in licences.rows().items() if not use] == []


def test_what_is_not_permissive_is_explained(installed: dict[str, Distribution]) -> None:
    bullets = re.findall(r"^- (.*(?:\n  .*)*)", licences.introduction(), flags=re.M)
    for name, package in installed.items():
        own = [bullet for bullet in bullets if re.search(rf"\b{re.escape(name)}\b", bullet)]
        if licences.COPYLEFT.search(licences.licence(package)):
            assert own, f"docs/LICENSES.md explains nothing of {name}: {licences.licence(package)}"
        files = {path.name for path in package.files or ()}
        for part in licences.HELD:
            if any(file.startswith(part) for file in files):
                assert any(f"`{part}`" in bullet for bullet in own), f"docs/LICENSES.md: {name} holds {part}"
