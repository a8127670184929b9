"""Environments of every Python that is here, with PyTorch and all that `dmao` needs; what pip downloaded is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.packaging.contents import ROOT
from tests.packaging.interpreters import interpreters

KEPT = ROOT / "build/package"
REQUIREMENTS = ROOT / "requirements"
COMPILERS = ("c++", "g++", "clang++")


def without_compilers() -> str:
    """A PATH on which there is nothing at all."""
    empty = KEPT / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    return str(empty)


@dataclass(frozen=True)
class Environment:
    """Of one version of Python, such as "3.12"."""

    version: str

    @property
    def folder(self) -> Path:
        return KEPT / self.version

    def run(self, command: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the environment, from a folder where no sources are; it must end well."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("DMAO_", "PIP_NO", "PYTHON"))
        }
        path = os.pathsep.join([str(self.folder / "bin"), variables.pop("PATH", os.environ["PATH"])])
        cache = {"PIP_CACHE_DIR": str(ROOT / "build/cache/pip"), "OMP_NUM_THREADS": "1", "DMAO_NO_CUDA": "1"}
        done = subprocess.run(
            [str(self.folder / "bin" / command), *map(str, arguments)],
            cwd=without_compilers(),
            env={**inherited, **cache, **variables, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{self.version}: {command} {arguments}\n{done.stdout}{done.stderr}"
        return done

    def pip(self, *arguments: str | Path, **variables: str) -> None:
        """Runs pip, with the versions of the project, in what it builds as well."""
        constraints = str(REQUIREMENTS / "constraints.txt")
        variables |= {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
        self.run("python", "-m", "pip", *arguments, **variables)

    def make(self) -> None:
        """With PyTorch, which the build looks at."""
        if not (self.folder / "bin/pip").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            subprocess.run([str(interpreters()[self.version]), "-m", "venv", str(self.folder)], check=True)
        self.pip("install", "-q", "torch")

    def install(self, package: Path, **variables: str) -> None:
        """A wheel or an sdist in the place of what was there, with the extra of the command."""
        self.pip("uninstall", "-q", "-y", "dmao-kernels")
        self.pip("install", "-q", f"{package}[recipes]", **variables)
        self.pip("check")

    def with_triton(self, wanted: bool) -> None:
        """CUDA builds of PyTorch name their version of Triton, the CPU build works with none."""
        if not wanted:
            self.pip("uninstall", "-q", "-y", "triton")
            return
        code = "from importlib.metadata import requires; print('\\n'.join(requires('torch')))"
        needed = self.run("python", "-c", code).stdout.splitlines()
        named = [line.partition(";")[0] for line in needed if line.startswith("triton")]
        self.pip("install", "-q", *(named or ["-r", REQUIREMENTS / "triton.txt"]))
