"""`python -m tests.packaging.licences` prints docs/LICENSES.md with a table of what is installed, from its metadata."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "dmao-kernels"
PAGE = Path(__file__).resolve().parents[2] / "docs/LICENSES.md"
HEAD = "| package | licence | for |\n|---|---|---|\n"
EXTRAS = {"": "the library", "recipes": "`dmao`", "dev": "development"}
BUILD = ("setuptools", "wheel", "cmake", "ninja")
# Those that say nothing themselves, or what one reads nowhere in their metadata.
UNTOLD = {"espeakng-loader": "not declared; holds eSpeak NG, GPL-3.0-or-later"}
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EUPL|CeCILL|EPL|CDDL|OSL")
# Files of packages under another licence than the package's own.
HELD = ("libespeak-ng", "libkenlm", "libsndfile", "libgfortran", "libquadmath", "libgomp", "ptxas")
# Of the interpreter, or of one kind of machine.
ELSEWHERE = re.compile(r"pip|nvidia-.*|cuda-.*")


def licence(package: Distribution) -> str:
    """Its expression, else what its classifiers and its field say, in short."""
    metadata = package.metadata
    if expression := metadata["License-Expression"]:
        return str(expression)
    classifiers = [name.split(" :: ")[-1] for name in metadata.get_all("Classifier", []) if name.startswith("License")]
    classifiers = [name for name in classifiers if name != "DFSG approved"]
    field = (metadata["License"] or "").strip()
    if field and "\n" not in field and len(field) < 60:
        return str(field)
    return ", ".join(classifiers) or UNTOLD.get(canonicalize_name(package.name), "")


def closure(names: Iterable[str], extra: str = "") -> set[str]:
    """The packages with all that they need here."""
    found: set[str] = set()
    left = {(canonicalize_name(name), extra) for name in names}
    seen = set(left)
    while left:
        name, wanted = left.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # a marker or an extra that does not hold here
        found.add(name)
        for text in package.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                needed = {(canonicalize_name(requirement.name), inner) for inner in requirement.extras or {""}}
                left |= needed - seen
                seen |= needed
    return found


def used_for() -> dict[str, str]:
    """Of every package the first purpose that needs it."""
    purposes = {}
    for extra, purpose in EXTRAS.items():
        for name in closure([PROJECT], extra):
            purposes.setdefault(name, purpose)
    for name in closure(BUILD):
        purposes.setdefault(name, "the build")
    return purposes | {"triton": "GPU kernels"}  # whoever brings it


def installed() -> dict[str, Distribution]:
    """What is installed beside the project, by its normalised name."""
    found = {canonicalize_name(package.name): package for package in distributions()}
    return {name: package for name, package in found.items() if name != PROJECT and not ELSEWHERE.fullmatch(name)}


@functools.cache
def rows() -> dict[str, tuple[str, str]]:
    """Package -> (licence, purpose)."""
    purposes = used_for()
    return {name: (licence(package), purposes.get(name, "")) for name, package in sorted(installed().items())}


def introduction() -> str:
    """The page up to its table: written by hand."""
    return PAGE.read_text(encoding="utf-8").partition(HEAD)[0]


def page() -> str:
    """The page with the table of what is installed."""
    return introduction() + HEAD + "".join(f"| {name} | {found} | {use} |\n" for name, (found, use) in rows().items())


if __name__ == "__main__":
    print(page(), end="")
