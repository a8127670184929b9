"""The Pythons on this machine."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13")  # as the classifiers in pyproject.toml say
CODE = "import sys; print('%d.%d' % sys.version_info[:2])"


@functools.cache
def interpreters() -> dict[str, Path]:
    """Of each version the first one that runs, from PATH or among those of pyenv, whose entries in PATH may not run."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders += [path / "bin" for path in sorted(pyenv.glob("versions/*"))]
    found: dict[str, Path] = {}
    for version in VERSIONS:
        for candidate in (folder / f"python{version}" for folder in folders):
            if version not in found and candidate.exists() and _version(candidate) == version:
                found[version] = candidate
    return found


def _version(python: Path) -> str:
    done = subprocess.run([str(python), "-c", CODE], capture_output=True, text=True, check=False)
    return done.stdout.strip()
