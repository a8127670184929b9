"""Installed, the packages are typed: mypy --strict checks a program against them, stubtest the native module's stub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.install.environments import Environment
from tests.packaging.contents import ROOT

PROGRAM = Path(__file__).with_name("user_program.py")


def mypy(environment: Environment, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    python, cache = environment.folder / "bin/python", ROOT / "build/cache/mypy"
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "--cache-dir", str(cache)]
    no_config = "--config-file="  # the project's, which lies above the folder, leads to the sources
    return subprocess.run(
        [*command, no_config, *map(str, arguments)],
        cwd=folder,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(own_environment: Environment, wheel: Path) -> Environment:
    own_environment.install(wheel)
    return own_environment


def test_program(installed: Environment, tmp_path: Path) -> None:
    done = mypy(installed, tmp_path, PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistake_is_seen(installed: Environment, tmp_path: Path) -> None:
    """The types come from the packages: without them everything would pass."""
    (tmp_path / "wrong.py").write_text(
        "import dmao_kernels\nfrom dmao.schedule import Schedule\n\n"
        "dmao_kernels.masked_linear(1, 2)\nSchedule(start='late')\ndmao_kernels.no_such_name\n"
    )
    done = mypy(installed, tmp_path, "wrong.py")
    wrong = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert set(wrong) == {"4", "5", "6"}, done.stdout + done.stderr


def test_stub(installed: Environment) -> None:
    installed.pip("install", "-q", "mypy")
    installed.run("stubtest", "dmao_kernels._host")
