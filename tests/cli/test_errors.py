"""What the command says when it is used wrongly: one line, an exit status, a way out."""

from __future__ import annotations

import json
import logging
import os
import shlex
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from dmao import console
from dmao.cli import main
from dmao.errors import reason
from dmao.trainer import resume_command

from tests.cli.conftest import commands, failing

COMMANDS = [" ".join(words) for words, _ in commands(main)]


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="dmao")


def one_line(result, status=2):
    """The only line of an error."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("dmao: error: ")
    return line


def test_help_names_every_command():
    result = run("--help")
    assert result.exit_code == 0
    assert "..." not in result.stdout.partition("Commands:")[2]  # no sentence is cut
    assert all(name in result.stdout for name in main.commands)
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("command", [*COMMANDS, "prepare"])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_of_every_command_has_an_example(command, option):
    result = run(*command.split(), option)
    assert result.exit_code == 0
    assert f"Usage: dmao {command}" in result.stdout
    assert f"dmao {command}" in result.stdout.partition("Example")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'CONFIG'"),
        (["train", "missing.yaml", "--run-dir", "run"], "'missing.yaml' does not exist"),
        (["train", "librispeech/conformer_265", "--run-dir", "run"], "did you mean 'librispeech/conformer_256'?"),
        (["train", ".", "--run-dir", "run"], "'.' is a folder"),
        (["train", "/dev/null", "--run-dir", "run"], "'/dev/null' is no file"),
        (["train", "good.yaml", "--run-dir", ""], "expected the name of a folder, got ''"),
        (["train", "twice.yaml", "--run-dir", "run"], "the key 'steps' stands twice"),
        (["tune", ".", "--lm-scale", "nan"], "nan is not finite"),
        (["decode", ".", "--word-score", "-inf"], "-inf is not finite"),
        (["prepare", "embedded", "--hours", "nan"], "nan is not finite"),
        (["train", "good.yaml"], "Missing option '--run-dir'"),
        (["train", "good.yaml", "--run-dir", "run", "--nope"], "No such option"),
        (["train", "good.yaml", "--run-dir", "good.yaml"], "'good.yaml' is a file"),
        (["train", "good.yaml", "--run-dir", "run"], "run `dmao prepare` first"),
        (["train", "unknown.yaml", "--run-dir", "run"], "unknown key 'stepps'; did you mean 'steps'?"),
        (["train", "list.yaml", "--run-dir", "run"], "must hold keys and values"),
        (["train", "broken.yaml", "--run-dir", "run"], "is not YAML"),
        (["train", "good.yaml", "--run-dir", "run", "--set", "steps"], "must look like key=value, got 'steps'"),
        (["train", "good.yaml", "--run-dir", "run", "--set", "steps=many"], "steps must be a whole number"),
        (["train", "good.yaml", "--run-dir", "run", "--set", "model.widht=3"], "did you mean 'width'?"),
        (["evaluate", "missing"], "'missing' does not exist"),
        (["evaluate", "."], "there is none in"),
        (["inspect", "good.yaml"], "good.yaml cannot be read"),
        (["bench", "--set", "data.root=nowhere"], "no prepared corpus in nowhere"),
        (["bench", "--pairs", "1"], "1 is not in the range"),
        (["prepare", "klingon"], "No such command 'klingon'"),
        (["prepare", "embedded", "--hours", "0"], "0.0 is not in the range"),
        (["prepare", "recorded-cs", "--hours", "2"], "No such option '--hours'"),
        (["prepare", "librispeech"], "Missing option '--source'"),
        (["prepare", "tedlium2", "--source", "nowhere"], "Directory 'nowhere' does not exist"),
        (["prepare", "tedlium2", "--source", ".", "--on-problem", "ignore"], "'ignore' is not one of 'refuse', 'skip'"),
        (["demo", "--set", "eval_splits=[dev]"], "eval_splits must have the split 'test', got dev"),
        (["demo", "--set", "grow_and_drop.schedule=null"], "schedule must not be null"),
        (["demo", "--set", "nope=1"], "unknown key 'nope'"),
        (["experiment", "mian", "good.yaml", "--run-dir", "run"], "'mian' is not one of 'main', "),
        (
            ["experiment", "main", "good.yaml", "--run-dir", "run", "--arm", "bsae"],
            "table main has no arm bsae; it has",
        ),
        (["compare", "good.yaml", "--with", "good.yaml"], "compare: cannot read report good.yaml"),
        (["lm", "--root", "nowhere", "--out", "lm.arpa"], "no prepared corpus in nowhere"),
        (["selftest", "--device", "tpu"], "'tpu' is neither cpu nor cuda"),
        pytest.param(
            ["selftest", "--device", "cuda"],
            "device is cuda, but PyTorch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text("steps: 5\n")
    (tmp_path / "unknown.yaml").write_text("stepps: 5\n")
    (tmp_path / "twice.yaml").write_text("steps: 5\nseed: 1\nsteps: 6\n")
    (tmp_path / "list.yaml").write_text("- 5\n")
    (tmp_path / "broken.yaml").write_text("steps: [5\n")
    assert said in one_line(run(*arguments))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in one_line(run("demo", "--run-dir", tmp_path / "run"))


def test_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    line = one_line(run("demo", "--run-dir", tmp_path / "file" / "run"))
    assert "Not a directory" in line
    assert "Errno" not in line


def test_what_the_system_says_is_said_plainly(tmp_path):
    assert reason(PermissionError(13, "Permission denied", "file")) == "Permission denied"
    assert reason(ValueError("a\nb")) == "a"
    (tmp_path / "corpus.json").mkdir()
    line = one_line(run("lm", "--root", tmp_path, "--out", tmp_path / "lm.arpa"))
    assert line.endswith("corpus.json: Is a directory")  # deleting it would not help


def test_traceback_on_demand(tmp_path):
    result = run("--traceback", "evaluate", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "there is none in" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("error", "code"), [(click.exceptions.Exit(7), 7), (click.exceptions.Abort(), 1)])
def test_clicks_own_ends_pass_through(error, code):
    result = failing(error)
    assert result.exit_code == code
    assert "dmao: error" not in result.output


def test_a_defect_is_not_dressed_up_as_a_user_error():
    assert isinstance(failing(ZeroDivisionError()).exception, ZeroDivisionError)


def test_too_little_memory_on_a_gpu_is_told_with_the_way_out():
    line = failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")).stderr
    assert line.startswith("dmao: error: CUDA out of memory. Tried to allocate 2 GiB (lower data.batch_seconds; ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 256. GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    ],
)
def test_too_little_memory_is_told_with_the_way_out(error):
    line = failing(error).stderr
    assert line == f"dmao: error: {error} (lower data.batch_seconds; `dmao memory` computes what a training takes)\n"


def test_messages_of_several_lines_become_one():
    assert failing(ValueError("a\n  b")).stderr == "dmao: error: a b (where: dmao --traceback ...)\n"


def test_json_has_no_nan(capsys):
    console.print_json({"ce": float("nan"), "n": 1})
    assert json.loads(capsys.readouterr().out) == {"ce": None, "n": 1}


def test_only_the_command_line_configures_logging(run_python):
    modules = "dmao.trainer, dmao.evaluate, dmao.inspect, dmao.overhead, dmao.cli, dmao.recipes.embedded.demo"
    check = "print(logging.root.handlers, *(logging.getLogger(n).handlers for n in ('dmao', 'dmao_kernels')))"
    assert run_python("-c", f"import logging, {modules}; {check}").stdout.split() == ["[]", "[]", "[]"]


def test_log_messages_are_compact(monkeypatch, capsys):
    for name in ("dmao", "dmao_kernels"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    console.show_log()
    console.show_log()
    logging.getLogger("dmao.trainer").info("an event")
    logging.getLogger("dmao.trainer").debug("a detail")
    logging.getLogger("dmao_kernels").warning("no kernels")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.partition(" ")[2] for line in captured.err.splitlines()] == ["an event", "no kernels (warning)"]


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the working directory cannot be used: No such file or directory" in one_line(run("info"))


def test_no_home(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert "there is no home directory: set HOME" in one_line(run("info"))


def test_streams_that_are_closed_or_cannot_write_a_name(run_python):
    code = """
import sys
from dmao.console import require_surroundings, show_log
sys.stdout.reconfigure(encoding="ascii")
sys.stderr = None
require_surroundings()
show_log()
print("ř", file=sys.stderr)
print("ř\\udcff")
"""
    ran = run_python("-c", code)
    assert ran.stdout.strip() == r"\u0159\udcff", ran.stderr


@pytest.mark.parametrize("folder", ["run", "-run"])
def test_the_command_to_go_on_names_no_option(folder):
    command = shlex.split(resume_command(Path(folder)))
    named = "run" if folder == "run" else "./-run"
    assert command == ["dmao", "train", f"{named}/config.yaml", "--run-dir", named]


def test_other_libraries_are_heard_and_ours_once(run_python):
    code = """
import logging
from dmao.console import show_log
show_log()
logging.warning("another's")
logging.getLogger("lhotse.x").warning("lhotse's")
logging.getLogger("dmao.x").warning("ours")
"""
    said = run_python("-c", code).stderr
    assert [said.count(word) for word in ("another's", "lhotse's", "ours")] == [1, 1, 1]
