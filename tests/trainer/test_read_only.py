"""Folders that cannot be written: told before the work is done, and no hindrance where nothing is to be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from dmao.cli import main
from dmao.errors import UserError
from dmao.files import require_writable, write_atomically

from tests.mounts import read_only


def run(*arguments, status=0):
    result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="dmao")
    assert result.exit_code == status, result.output
    return result


def refused(*arguments):
    """The last line of a command that cannot write."""
    line = run(*arguments, status=2).stderr.splitlines()[-1]
    assert line.startswith("dmao: error: cannot write ")
    assert line.endswith("; mend that or choose another place, then type the same command again")
    return line


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test where a command begins with what takes long."""

    def begun(*_, **__):
        pytest.fail("the work was begun")

    for name in (
        "dmao.recognise.outputs",
        "dmao.experiments.run.train",
        "dmao.trainer.build_model",
        "dmao.decode.write_arpa",
        "dmao_kernels.testing.selftest.run.selftest",
    ):
        monkeypatch.setattr(name, begun)


@pytest.fixture
def trained(runs, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(runs.expected, tmp_path / "trained")


@pytest.mark.parametrize("command", ["train", "experiment", "decode", "lm", "selftest"])
def test_output_below_a_file(runs, tmp_path, no_work, command):
    (tmp_path / "file").write_text("")
    out, config = tmp_path / "file" / "out", runs.folder / "config.yaml"
    arguments = {
        "train": [config, "--run-dir", out],
        "experiment": ["main", config, "--run-dir", out],
        "decode": [runs.expected, "--out", out],
        "lm": ["--root", runs.config.data.root, "--out", out],
        "selftest": ["--out", out],
    }[command]
    assert f"{out}" in refused(command, *arguments)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("command", ["prior", "tune", "decode"])
def test_a_run_on_a_read_only_disk(trained, no_work, command):
    with read_only(trained):
        assert str(trained) in refused(command, trained)


def test_what_the_system_refuses_is_told_without_rights_as_well(trained, no_work, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for command in ("prior", "tune", "decode"):
        assert "Read-only file system" in refused(command, trained)


def test_decoding_a_read_only_run_into_another_folder(trained, tmp_path):
    with read_only(trained):
        result = run("decode", trained, "--out", tmp_path / "out", "--json")
    assert "the prior is estimated, and not kept: cannot write " in result.stderr
    assert json.loads(result.stdout)["words"] > 0
    assert (tmp_path / "out" / "report.txt").exists()


def test_training_from_a_read_only_corpus(runs, tmp_path):
    with read_only(runs.folder / "corpus"):
        runs.finish(tmp_path / "run")


def test_resuming_in_a_read_only_folder(runs, tmp_path):
    run_dir = tmp_path / "run"
    runs(run_dir, place="checkpoint", entry=2)
    with read_only(run_dir):
        ended = runs(run_dir)
    assert ended.status == 2, ended.said
    assert ended.said.splitlines()[-1].startswith(f"dmao: error: cannot write {run_dir}")
    runs.finish(run_dir)


def test_asking_leaves_nothing(tmp_path):
    require_writable(tmp_path / "a" / "b" / "file")
    assert list(tmp_path.iterdir()) == []
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(UserError, match=r"cannot write .*file/file: Not a directory; mend that"):
        require_writable(tmp_path / "file" / "file")
    with pytest.raises(UserError, match=r"cannot write .*file/file: "):
        write_atomically(tmp_path / "file" / "file", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_name_that_the_system_refuses(tmp_path):
    for write in (require_writable, lambda path: write_atomically(path, "x")):
        with pytest.raises(UserError, match=r"cannot write .*: File name too long; mend that"):
            write(tmp_path / ("x" * 300))


def test_two_machines_write_the_same_file(tmp_path, monkeypatch):
    """At the same moment, and with the same number of their process."""
    path, replace, others = tmp_path / "file", Path.replace, ["the other's"]

    def with_another(partial, target):
        if others:
            write_atomically(path, others.pop())
            assert path.read_text() == "the other's"
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", with_another)
    write_atomically(path, "mine")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "mine")]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    """Nor /dev/null, which root could."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        for write in (require_writable, lambda path: write_atomically(path, "x")):
            with pytest.raises(UserError, match=rf"cannot write .*{path.name}: it is a device or a pipe"):
                write(path)
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_link_stays(tmp_path):
    (tmp_path / "other").mkdir()
    link, file = tmp_path / "link", tmp_path / "other" / "file"
    link.symlink_to(file)
    write_atomically(link, "x")
    assert link.is_symlink()
    assert file.read_text() == "x"
    assert [path.name for path in file.parent.iterdir()] == ["file"]
