"""Builds the native part with CMake. Metadata and settings are in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
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
OLDEST_GPU = 80  # compute capability 8.0: what the kernels in CUDA C++ are written for
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


def find_nvcc() -> Path | None:
    """The compiler of the kernels in CUDA C++: CUDACXX, nvcc on PATH, or what pip packages of NVIDIA's hold."""
    if os.environ.get("DMAO_NO_CUDA") == "1":
        return None
    if named := os.environ.get("CUDACXX"):
        if shutil.which(named) is None:
            raise SystemExit(f"dmao_kernels: CUDACXX must name an nvcc, found none at {named}")
        return Path(str(shutil.which(named))).absolute()
    if found := shutil.which("nvcc"):
        return Path(found)
    packages = [Path(directory, "nvidia") for directory in [*sys.path, sysconfig.get_path("purelib")]]
    return next((nvcc for package in packages for nvcc in sorted(package.glob("cu*/bin/nvcc"))), None)


def cuda_options(nvcc: Path) -> list[str]:
    """What CMake needs to know of it. In pip packages the libraries are not where nvcc looks for them."""
    libraries = nvcc.resolve().parents[1] / "lib"
    flags = [] if (libraries.parent / "lib64").exists() else [f"-DCMAKE_CUDA_FLAGS=-L{libraries}"]
    return [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DDMAO_CUDA_ARCHITECTURES={cuda_architectures()}", *flags]


def cuda_architectures() -> str:
    """Those named by DMAO_CUDA_ARCHITECTURES, else of the GPUs that are here, the oldest first; "" for all that the
    kernels know."""
    named = os.environ.get("DMAO_CUDA_ARCHITECTURES", "")
    if named == "all":
        return ""
    if named:
        found = [int(each) if each.isascii() and each.isdigit() else 0 for each in named.split(",")]
        if min(found) < OLDEST_GPU:
            raise SystemExit(
                "dmao_kernels: DMAO_CUDA_ARCHITECTURES must be 'all' or a list such as 80,90 of architectures from "
                f"{OLDEST_GPU} on, found {named!r}"
            )
    else:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        smi = shutil.which(query[0])
        listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split() if smi else []
        found = [int(version.replace(".", "")) for version in listed if re.fullmatch(r"\d+\.\d", version)]
    return ";".join(map(str, sorted({each for each in found if each >= OLDEST_GPU})))


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
    """Runs CMake once and takes the libraries from its build directory, which is kept for the next build."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] in ("_ops", "_cuda"):  # loaded by torch.ops.load_library, not a Python module
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        built = self.run_cmake()
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built / target.name), str(target))

    def run_cmake(self) -> Path:
        torch = find_torch()
        if torch is None:
            raise SystemExit(f"dmao_kernels: building needs torch; pip install '{TORCH_REQUIREMENT}' first")
        check_torch_version(torch)
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            raise SystemExit("dmao_kernels: cmake is needed to build; pip install cmake ninja first")
        # A build directory belongs to one generator, one Python, and one nvcc (or none).
        kind = f"{'ninja' if ninja else 'make'}-{sysconfig.get_config_var('SOABI')}"
        directory = ROOT / "build" / (f"{kind}-cuda" if NVCC else kind)
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(directory), *generator),
            f"-DDMAO_TORCH_DIR={torch}",
            f"-DDMAO_VERSION={self.distribution.get_version()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *(cuda_options(NVCC) if NVCC else []),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
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
NVCC = None if REASON else find_nvcc()
if REASON is not None:
    print(f"dmao_kernels: installing without native kernels (the reference backend will be used): {REASON}")
elif NVCC is None:
    print("dmao_kernels: building without kernels in CUDA C++ (GPUs will use Triton): no nvcc here, or DMAO_NO_CUDA=1")

LIBRARIES = [] if REASON else ["_ops", "_host", *(["_cuda"] if NVCC else [])]

setup(
    packages=find_packages(include=["dmao_kernels", "dmao_kernels.*"]) + find_packages("python"),
    package_dir={"dmao": "python/dmao"},
    ext_modules=[Extension(f"dmao_kernels.{library}", [], py_limited_api=True) for library in LIBRARIES],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=[TORCH_REQUIREMENT] if REASON is None and find_torch() is None else [],
)
