"""The sdist has what a build needs and nothing else; the wheel from it has the packages of the tree, byte by byte."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from tests.packaging import contents
from tests.packaging.contents import ROOT


def test_packages_have_only_what_is_taken_along() -> None:
    assert {path.suffix for path in contents.packaged().values()} == contents.KINDS
    assert all((folder / "py.typed").exists() for folder in contents.PACKAGES.values())


def test_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        executable = [member.name for member in archive.getmembers() if member.isfile() and member.mode & 0o111]
    made = {name for name in names if name.startswith("dmao_kernels.egg-info/")}
    packages = {path.relative_to(contents.ROOT).as_posix() for path in contents.packaged().values()}
    wanted = contents.BUILD | contents.ADDED | packages | contents.native_sources().keys()
    assert sorted(names - made) == sorted(wanted)
    assert executable == []


def test_what_is_left_out_is_not_included() -> None:
    """Every header that a source of the sdist includes by a quoted name is in it."""
    taken = set(contents.native_sources().values())
    for path in taken:
        for name in re.findall(r'^#include "(.+)"', path.read_text(), flags=re.M):
            places = [
                folder / name for folder in (path.parent, ROOT / "csrc/include", ROOT / "csrc/cuda", ROOT / "csrc")
            ]
            assert taken & {place.resolve() for place in places}, f"{path.relative_to(ROOT)} includes {name}"


def test_wheel_from_the_sdist(plain_wheel: Path) -> None:
    assert plain_wheel.name.split("-")[2:] == ["py3", "none", "any.whl"]  # nothing native: any Python, any machine
    assert contents.libraries(plain_wheel) == set()
    assert contents.in_wheel(plain_wheel) == contents.in_tree()
