"""The wheel that `make wheel` has built, and the kernels in it."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

from dmao_kernels._version import __version__
from dmao_kernels.testing import sass
from tests.emu.build import ROOT


def wheel() -> Path:
    """The file; an error without it."""
    found = sorted((ROOT / "dist").glob(f"dmao_kernels-{__version__}-*.whl"))
    assert len(found) == 1, f"dist must hold one wheel of {__version__}, found {len(found)}: make wheel"
    return found[0]


@functools.cache
def unpacked(folder: Path) -> Path:
    """A folder with the wheel's packages."""
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(folder)
    return folder


@functools.cache
def kernels(library: Path, folder: Path) -> dict[int, dict[str, sass.Binary]]:
    """Of every architecture the kernels by their symbols."""
    found: dict[int, dict[str, sass.Binary]] = {}
    for cubin in sass.extract(library, folder):
        architecture = int(cubin.stem.rpartition("sm_")[2])
        found.setdefault(architecture, {}).update(sass.binaries(cubin))
    return found
