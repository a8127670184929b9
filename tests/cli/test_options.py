"""What all commands have in common: the same options in the same words, --json, bars that only a terminal sees."""

from __future__ import annotations

import io
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from dmao.cli import main
from dmao.data import embedded
from dmao.progress import bar

from tests.cli.conftest import CORPUS, HOURS, SETTINGS, commands

SHARED = ("--run-dir", "--set", "--split", "--root", "--json", "--jobs", "--lm", "--glm", "--drop")


@pytest.mark.parametrize("name", SHARED)
def test_one_thing_has_one_name(name):
    options = [option for _, command in commands(main) for option in command.params if name in option.opts]
    assert len(options) > 1
    assert len({(o.name, o.metavar, o.type.name, o.multiple, tuple(o.opts)) for o in options}) == 1


def test_all_results_are_told_in_json_too():
    without = [words for words, command in commands(main) if not any("--json" in o.opts for o in command.params)]
    assert without == [("completion",)]


def test_a_number_without_bounds_shows_none():
    for command in ("decode", "tune", "experiment"):
        shown = CliRunner().invoke(main, [command, "--help"]).stdout
        assert "--word-score FLOAT" in shown
        assert "--lm-scale FLOAT RANGE" in shown
        assert "None" not in shown


def test_every_option_is_explained():
    undescribed = [
        (*words, option.name)
        for words, command in commands(main)
        for option in command.params
        if option.param_type_name == "option" and not option.help
    ]
    assert undescribed == []


@pytest.fixture
def told(monkeypatch, capfd):
    """told(*arguments): the JSON that a command prints, and nothing else."""
    monkeypatch.setattr(embedded, "prepare_embedded", partial(embedded.prepare_embedded, **CORPUS))

    def run(*arguments):
        result = CliRunner().invoke(main, [*map(str, arguments), "--json"], prog_name="dmao")
        assert result.exit_code == 0, result.output
        assert "\r" not in result.stderr  # no bars off a terminal
        assert capfd.readouterr().out == ""  # nor does a library print past Python
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("told") / "run"
    shutil.copytree(demo[0] / "dmao", folder)
    return folder


def test_train(told, trained):
    found = told("train", trained / "config.yaml", "--run-dir", trained)
    assert (found["steps"], found["run_dir"]) == (12, str(trained))
    assert found["evaluations"].keys() == {"test"}
    assert len(found["events"]) == 1


def test_train_speaks_for_one_of_several_processes(trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(main, ["train", str(trained / "config.yaml"), "--run-dir", str(trained)])
    assert (result.exit_code, result.stdout) == (0, "")


def test_prepare(told, corpus):
    found = told("prepare", "embedded", "--root", corpus, "--hours", HOURS, "--words", CORPUS["words"])
    assert (found["name"], found["root"]) == ("embedded", str(corpus))
    assert found["splits"].keys() == {"train", "dev", "test"}


def test_lm(told, tmp_path):
    (tmp_path / "texts").write_text("\ufeffa b\n\nb\n", encoding="utf-8")
    out = tmp_path / "lm.arpa"
    assert told("lm", tmp_path / "texts", "--out", out, "--order", 2) == {"lm": str(out), "order": 2, "sentences": 2}
    assert "<s> a" in (written := out.read_text(encoding="utf-8"))
    assert "\ufeff" not in written


def test_prior(told, trained):
    found = told("prior", trained, "--batches", 1)
    assert sum(found["prior"]) == pytest.approx(1)
    with open(found["file"]) as file:
        assert json.load(file)["prior"] == found["prior"]


def test_decode_and_compare(told, trained):
    assert told("decode", trained, "--search", "greedy")["folder"] == str(trained / "decode" / "test")
    found = told("compare", trained, "--with", trained, "--draws", 100)
    assert (found["difference"], found["seeds"]) == (0, 1)


def test_memory_and_loader(told, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Path("tiny.yaml")
    config.write_text("threads: 1\n")
    changes = [part for setting in (*SETTINGS, f"data.root={corpus}") for part in ("--set", setting)]
    found = told("memory", config, *changes)["tiny"]
    assert found["fixed"] == 16 * found["parameters"] < found["total"]
    Path("a/seed-0").mkdir(parents=True)
    Path("b/seed-0").mkdir(parents=True)
    both = [str(config.rename(f"a/seed-0/{config}")), "b/seed-0/tiny.yaml"]
    Path(both[1]).write_text("threads: 1\n")
    assert list(told("memory", *both, *changes)) == both
    config = both[0]
    (one,) = told("bench-loader", config, *changes, "--workers", 0, "--batches", 2)["loader"]
    assert (one["workers"], one["batches"]) == (0, 2)


def test_selftest(told, tmp_path):
    found = told("selftest", "--device", "cpu", "--only", "numerics", "--seconds", 0, "--out", tmp_path)
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert len(found["checks"]) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_for_terminals(monkeypatch):
    for stream, shown, seen in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(bar([1, 2], "counting", "one", shown=shown)) == [1, 2]
        assert ("counting" in stream.getvalue()) == seen
