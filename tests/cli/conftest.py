"""One tiny corpus and one tiny finished demo for all tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

pytest.importorskip("espeakng_loader")

from click.testing import CliRunner, Result
from dmao.console import OneLineErrors
from dmao.data.embedded import prepare_embedded

ROOT = Path(__file__).resolve().parents[2]
CORPUS = {"words": 20, "dev_minutes": 0.05, "test_minutes": 0.1, "jobs": 1, "progress": False}
HOURS = 0.01
EVENT_STEP = 5
SETTINGS = (
    "steps=12",
    "data.batch_seconds=6",
    "model={width: 16, blocks: 2, heads: 4, head_dim: 4, kernel: 3, front_channels: [2, 4, 4, 2]}",
    f"grow_and_drop.schedule={{start: {EVENT_STEP}, events: 1, fraction: 0.4}}",
    "log_scores_every=4",
    "checkpoint_every=4",
    "eval_splits=[test]",
    "eval_every=0",
    "tensorboard=false",
)
# `dmao` as typed, except that the demo's dev and test splits, and its measurements, are as small as the tests need.
# A shell that runs the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
MAIN = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import functools, dmao.data.embedded as embedded, dmao.recipes.embedded.demo as demo
embedded.prepare_embedded = functools.partial(embedded.prepare_embedded, **{CORPUS!r})
demo.run_demo = functools.partial(demo.run_demo, pairs=3)
from dmao.cli import main
main(prog_name="dmao")
"""


def commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """(words, command) of all commands of a group that are no groups themselves."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name), command


def failing(error: BaseException) -> Result:
    """What comes of a command that raises `error`: `dmao fail --fresh`."""

    @click.group(cls=OneLineErrors)
    def talk() -> None:
        pass

    @talk.command()
    @click.option("--fresh", is_flag=True)
    def fail(fresh: bool) -> None:
        raise error

    return CliRunner().invoke(talk, ["fail", "--fresh"])


def processes() -> str:
    """Command lines of all processes."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    lines = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/cmdline", "rb") as file:
                    lines.append(file.read().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(lines)


@dataclass
class Dmao:
    """Runs `dmao ARGUMENTS` in a process of its own, in `cwd`."""

    cwd: Path

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DMAO_")}
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", MAIN, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.cwd, env=environment, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=100)
        assert process.returncode == status, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return prepare_embedded(tmp_path_factory.mktemp("cli") / "corpus", hours=HOURS, **CORPUS).root


@pytest.fixture(scope="session")
def demo_arguments(corpus) -> Callable[..., list[str]]:
    def arguments(run_dir: Path, *overrides: str) -> list[str]:
        settings = [*SETTINGS, f"data.root={corpus}", *overrides]
        changes = [part for setting in settings for part in ("--set", setting)]
        return ["demo", "--run-dir", str(run_dir), "--hours", str(HOURS), *changes]

    return arguments


@pytest.fixture(scope="session")
def demo(tmp_path_factory, demo_arguments):
    """(folder, finished process) of a demo; tests may read the folder, and change copies of it."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    return folder, Dmao(folder.parent)(*demo_arguments(folder))


@pytest.fixture
def dmao(tmp_path) -> Dmao:
    return Dmao(tmp_path)
