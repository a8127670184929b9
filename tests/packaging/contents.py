"""What belongs into the packages, read from the tree; sdist and wheel of it are compared with that."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"dmao_kernels": ROOT / "dmao_kernels", "dmao": ROOT / "python/dmao"}
KINDS = {".py", ".pyi", ".yaml", ".typed"}
# Beside the sources in C++ and the packages, what a build reads, and what setuptools adds.
BUILD = {"CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
ADDED = {"PKG-INFO", "setup.cfg"}
BUILD_HOOK = "import sys; from setuptools.build_meta import build_{0}; build_{0}(sys.argv[1])"
BUILD_SDIST = BUILD_HOOK.format("sdist")
BUILD_WHEEL = BUILD_HOOK.format("wheel")


def files(folder: Path) -> list[Path]:
    """All of a folder, but for what Python keeps there."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")


def packaged() -> dict[str, Path]:
    """Every file of the packages by its name in a wheel; libraries are built, not taken along."""
    found = {}
    for name, folder in PACKAGES.items():
        sources = [path for path in files(folder) if path.suffix != ".so"]
        found |= {f"{name}/{path.relative_to(folder).as_posix()}": path for path in sources}
    return found


def native_sources() -> dict[str, Path]:
    """What CMake reads."""
    left = {ROOT / "csrc/tests", ROOT / "csrc/cuda_on_host"}
    found = [path for path in files(ROOT / "csrc") if not left & set(path.parents)]
    return {path.relative_to(ROOT).as_posix(): path for path in found}


def hook(code: str, source: Path, out: Path, **variables: str) -> Path:
    """Runs a hook of the build backend, as pip does, in the folder of the sources; what it made."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, cwd=source, env=variables or None, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


def make_sdist(copy: Path, out: Path) -> Path:
    """Of a copy of the tree, with what lies about after work: the build writes into its folder."""
    for name in BUILD:
        shutil.copy2(ROOT / name, copy)
    for folder in ("csrc", "dmao_kernels", "python", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("build", "data", "dist", "runs"):
        (copy / folder).mkdir()
        (copy / folder / "left.py").touch()
    return hook(BUILD_SDIST, copy, out)


def unpack(sdist: Path, folder: Path) -> Path:
    """The folder of its sources."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def in_wheel(wheel: Path) -> dict[str, bytes]:
    """Every file of the packages in it, without libraries and metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith(".so")]
        return {name: archive.read(name) for name in names}


def in_tree() -> dict[str, bytes]:
    """The same of the tree."""
    return {name: path.read_bytes() for name, path in packaged().items()}


def libraries(wheel: Path) -> set[str]:
    """The native ones in it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name.removeprefix("dmao_kernels/") for name in archive.namelist() if name.endswith(".so")}
