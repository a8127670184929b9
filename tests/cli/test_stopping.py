"""How commands end: exit statuses, and what Ctrl-C leaves behind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import time
from types import SimpleNamespace

import click
import pytest
import yaml
from click.testing import CliRunner
from dmao.cli import main
from dmao.console import STATUSES, OneLineErrors
from dmao.data.corpus import Corpus
from dmao.errors import UserError
from dmao.metrics import read_json_lines
from dmao.signals import stop_signals

from tests.cli.conftest import SETTINGS, failing, processes


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Also where the tests themselves run under nohup: SIGHUP is not ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_the_statuses_are_told():
    told = CliRunner().invoke(main, ["--help"]).stdout.partition("Exit status:")[2]
    assert re.findall(r"^ +(\d+) ", told, flags=re.M) == ["0", "1", "2", "130", "143"]
    assert "..." not in STATUSES


def test_a_signal_decides_the_exit_status():
    error = UserError("stopped")
    error.signal = signal.SIGTERM
    result = failing(error)
    assert result.exit_code == 143
    assert result.stderr == "dmao: error: stopped; continue with: dmao fail\n"  # --fresh would begin again
    assert failing(KeyboardInterrupt()).exit_code == 130


def test_an_error_with_its_own_command_keeps_it():
    error = UserError("stopped; continue with: this")
    error.signal, error.command = signal.SIGINT, "this"
    assert failing(error).stderr == "dmao: error: stopped; continue with: this\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_every_command_may_be_stopped(number, status):
    @click.group(cls=OneLineErrors)
    def group():
        pass

    @group.command()
    @click.argument("name")
    def wait(name):
        os.kill(os.getpid(), number)
        time.sleep(10)

    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    result = CliRunner().invoke(group, ["wait", "a  b"])
    assert result.exit_code == status
    said = "dmao: error: interrupted; what is finished stays, continue with: dmao wait 'a  b'\n"
    assert result.stderr == said
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_nohup_is_respected(monkeypatch):
    assert signal.SIGHUP in stop_signals()
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert stop_signals() == [signal.SIGINT, signal.SIGTERM]


def test_a_selftest_that_fails(monkeypatch):
    monkeypatch.setattr("dmao_kernels.testing.selftest.run.selftest", lambda *_, **__: SimpleNamespace(wrong=["adamw"]))
    assert CliRunner().invoke(main, ["selftest"]).exit_code == 1


def test_output_that_nobody_reads(dmao):
    process = dmao.start("completion", "zsh")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=100) == 1


def command_in(errors: str) -> list[str]:
    """The arguments that the last line says to go on with."""
    program, *arguments = shlex.split(errors.splitlines()[-1].partition("continue with: ")[2])
    assert program == "dmao"
    return arguments


def interrupt(process, when) -> str:
    """Press Ctrl-C as soon as `when()`; what is said then."""
    while not when():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return errors


def test_ctrl_c_while_preparing_leaves_no_process(dmao):
    arguments = ["prepare", "embedded", "--root", "corpus", "--hours", "0.5", "--jobs", "1"]
    audio = dmao.cwd / "corpus" / "audio"
    errors = interrupt(dmao.start(*arguments), lambda: list(audio.glob("*.spec.json")))  # a worker has its order
    assert errors.splitlines()[-1].startswith("dmao: error: interrupted; ")
    assert command_in(errors) == arguments
    assert str(audio) not in processes()
    shutil.rmtree(audio)


@pytest.mark.slow
def test_a_preparation_goes_on(dmao):
    audio = dmao.cwd / "corpus" / "audio"

    def done():
        return {path.name: path.stat().st_mtime_ns for path in audio.glob("*-????-????????????") if path.is_dir()}

    arguments = ["prepare", "embedded", "--root", "corpus", "--hours", "0.08", "--words", "20", "--jobs", "1"]
    errors = interrupt(dmao.start(*arguments), done)
    before = done()
    dmao(*command_in(errors))
    after = done()
    assert before.items() < after.items()  # what was spoken is not spoken again
    assert Corpus.load(dmao.cwd / "corpus").splits.keys() == {"train", "dev", "test"}


def test_an_experiment_goes_on(dmao, corpus, monkeypatch):
    config = dmao.cwd / "config.yaml"
    config.write_text(yaml.safe_dump({"threads": 1, "data": {"root": str(corpus)}}))
    settings = (*SETTINGS, "steps=30", "checkpoint_every=1000")
    changes = [part for setting in settings for part in ("--set", setting)]
    arguments = ["experiment", "main", str(config), "--run-dir", "my table", "--seeds", "1", "--arm", "baseline"]
    rows = dmao.cwd / "my table" / "baseline" / "seed-0" / "metrics.jsonl"

    def steps():
        found = read_json_lines(rows) if rows.exists() else []
        return [row["step"] for row in found if row["kind"] == "train"]

    errors = interrupt(dmao.start(*arguments, *changes), lambda: len(steps()) > 2)
    assert "dmao: error: experiment: train: stopped at step " in errors.splitlines()[-1]
    assert command_in(errors) == [*arguments, *changes]
    assert 2 < len(steps()) < 30
    monkeypatch.chdir(dmao.cwd)
    result = CliRunner().invoke(main, command_in(errors), prog_name="dmao")
    assert result.exit_code == 0, result.output
    assert "train: resuming" in result.stderr
    assert steps() == list(range(1, 31))
    assert result.stdout.splitlines()[-1].startswith("| baseline | 1 |")
