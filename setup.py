"""Builds the native part with CMake. Metadata and settings are in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 13)
TORCH_REQUIREMENT = "torch==2.13.0"


def find_compiler() -> str | None:
    """The C++ compiler that CMake would take, or None."""
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name)), None)


def missing_tool() -> str | None:
    """Why the native part cannot be built here, or None. A compiler that fails is an error instead."""
    if os.environ.get("DMAO_NO_NATIVE") == "1":
        return "DMAO_NO_NATIVE=1 is set"
    if find_compiler() is None:
        return "no C++ compiler was found (c++, g++, clang++, or the one named by CXX)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are missing (Python.h; on Debian the package python3-dev)"
    return None


def find_tool(name: str) -> str | None:
    """A build tool on PATH or among the scripts of the running interpreter (a venv need not be activated)."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def find_torch() -> Path | None:
    """Directory of the torch package of the target interpreter, without importing it.

    pip builds in an isolated environment that does not show the packages of the target interpreter, although
    its directories are known; so they are looked into. Only headers and two libraries are read.
    """
    spec = importlib.util.find_spec("torch")
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    directories = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    candidates += [Path(directory, "torch") for directory in directories]
    return next((path for path in candidates if (path / "version.py").exists()), None)


def check_torch_version(torch: Path) -> None:
    version = re.search(r"__version__ = ['\"](\d+)\.(\d+)", (torch / "version.py").read_text())
    if version is None or tuple(map(int, version.groups())) < OLDEST_TORCH:
        found = f"{version[1]}.{version[2]}" if version else "an unknown version"
        raise SystemExit(f"dmao_kernels: torch must be >= {'.'.join(map(str, OLDEST_TORCH))}, found {found}")


class CMakeBuild(build_ext):
    """Runs CMake once and takes both libraries from its build directory, which is kept for the next build."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] == "_ops":  # loaded by torch.ops.load_library, not a Python module
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        built = self.run_cmake()
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built / target.name), str(target))

    def run_cmake(self) -> Path:
        import pybind11

        torch = find_torch()
        if torch is None:
            raise SystemExit(f"dmao_kernels: building needs torch; pip install '{TORCH_REQUIREMENT}' first")
        check_torch_version(torch)
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            raise SystemExit("dmao_kernels: cmake is needed to build; pip install cmake ninja pybind11 first")
        # A build directory belongs to one generator and one Python.
        directory = ROOT / "build" / f"{'ninja' if ninja else 'make'}-{sysconfig.get_config_var('SOABI')}"
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(directory), *generator),
            f"-DDMAO_TORCH_DIR={torch}",
            f"-DDMAO_PYBIND11_INCLUDE={pybind11.get_include()}",
            f"-DDMAO_PYBIND11_VERSION={pybind11.__version__}",
            f"-DDMAO_VERSION={self.distribution.get_version()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(directory), "--parallel", jobs], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "dmao_kernels: the native build failed, the compiler's messages are above "
                "(DMAO_NO_NATIVE=1 installs without native kernels)"
            ) from error
        return directory


REASON = missing_tool()
if REASON is not None:
    print(f"dmao_kernels: installing without native kernels (the reference backend will be used): {REASON}")

setup(
    packages=find_packages(include=["dmao_kernels", "dmao_kernels.*"]) + find_packages("python"),
    package_dir={"dmao": "python/dmao"},
    ext_modules=[] if REASON else [Extension("dmao_kernels._ops", []), Extension("dmao_kernels._host", [])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=[TORCH_REQUIREMENT] if REASON is None and find_torch() is None else [],
)
