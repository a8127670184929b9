"""The wheel that `make wheel` has built, and the kernels in it."""

from __future__ import annotations

import functools
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dmao_kernels._version import __version__
from dmao_kernels.testing import sass
from tests.cuda.launches import names_of
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
    """Of every architecture the kernels by their names."""
    found: dict[int, dict[str, sass.Binary]] = {}
    cubins = sass.extract(library, folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # of processes, which take minutes
        for cubin, kernels in zip(cubins, pool.map(sass.binaries, cubins), strict=True):
            architecture = int(cubin.stem.rpartition("sm_")[2])
            found.setdefault(architecture, {}).update(zip(names_of(list(kernels)), kernels.values(), strict=True))
    return found
