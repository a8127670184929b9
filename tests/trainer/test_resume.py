"""A training that is stopped, or finds its checkpoint damaged goes on as if nothing had happened."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dmao import checkpoint
from dmao.checkpoint import CheckpointError
from dmao.config import ConfigError
from dmao.errors import UserError
from dmao.files import held
from dmao.metrics import read_json_lines
from dmao.trainer import TrainingInterrupted, train

from tests.trainer.tiny import TinySource, losses, tiny_config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tiny_config(), tmp_path_factory.mktemp("uninterrupted"), TinySource())


def assert_same(run_dir: Path, expected: Path) -> None:
    """The same losses, events and final state, bit for bit, and every row once."""
    rows, wanted = (list(read_json_lines(folder / "metrics.jsonl")) for folder in (run_dir, expected))
    assert losses(rows) == losses(wanted)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 25))
    for name in ("events.jsonl", "scores.jsonl"):
        here, there = ([_timeless(row) for row in read_json_lines(d / name)] for d in (run_dir, expected))
        assert here == there
        assert here
    states = [checkpoint.load_latest(folder / "checkpoints")[1] for folder in (run_dir, expected)]
    for part in ("model", "optimizer", "place"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    assert states[0]["controller"]["structure"] == states[1]["controller"]["structure"]


def _timeless(row):
    return {key: value for key, value in row.items() if key != "seconds"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, uninterrupted, number):
    source = _SourceWithSignal(number)
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=r"stopped at step 7 of 24.*dmao train") as caught:
        train(tiny_config(), tmp_path, source)
    assert caught.value.signal == number
    assert signal.getsignal(number) is before
    assert checkpoint.load_latest(tmp_path / "checkpoints")[1]["step"] == 7
    train(tiny_config(), tmp_path, TinySource())
    assert_same(tmp_path, uninterrupted.run_dir)


HOLDS = """
import sys, time
from pathlib import Path
from dmao.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_which_another_process_trains_is_refused_until_that_has_ended(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"another process writes into {tmp_path}: wait for it"):
            train(tiny_config(), tmp_path, TinySource())
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    finally:
        other.kill()
        other.wait()
    assert train(tiny_config(), tmp_path, TinySource()).steps == 24


def test_a_checkpoint_that_another_process_wrote_while_this_one_began_is_not_overwritten(tmp_path, monkeypatch):
    load = checkpoint.load_latest

    def load_slowly(folder):
        found = load(folder)
        monkeypatch.undo()
        train(tiny_config(), tmp_path, TinySource())
        return found

    monkeypatch.setattr(checkpoint, "load_latest", load_slowly)
    with pytest.raises(UserError, match=f"another process has just trained in {tmp_path}; type the same command again"):
        train(tiny_config(), tmp_path, TinySource())
    assert train(tiny_config(), tmp_path, TinySource()).steps == 24


def test_a_folder_may_be_a_link_to_one_that_is_not_there_yet(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "scratch" / "run")
    with held(tmp_path / "run"):
        assert (tmp_path / "scratch" / "run" / ".lock").exists()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with held(tmp_path / "run"):
        pass
    assert "cannot be locked (No locks available): start no second process" in caplog.text


class _SourceWithSignal(TinySource):
    def __init__(self, number: int):
        super().__init__()
        self.number, self.fetched = number, 0

    def _batch(self, split, indices):
        self.fetched += 1
        if self.fetched == 7:
            os.kill(os.getpid(), self.number)
        return super()._batch(split, indices)


class _Stop(Exception):
    pass


def _train_until(step: int, run_dir: Path) -> None:
    class Source(TinySource):
        fetched = 0

        def _batch(self, split, indices):
            self.fetched += 1
            if self.fetched > step:
                raise _Stop
            return super()._batch(split, indices)

    with pytest.raises(_Stop):
        train(tiny_config(), run_dir, Source())


def test_a_damaged_checkpoint_is_passed_over(tmp_path, uninterrupted, caplog):
    _train_until(17, tmp_path)
    newest, _ = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(tiny_config(), tmp_path, TinySource())
    assert "damaged" in caplog.text
    assert_same(tmp_path, uninterrupted.run_dir)


def test_all_checkpoints_damaged(tmp_path):
    _train_until(12, tmp_path)
    for path in checkpoint.list_checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        train(tiny_config(), tmp_path, TinySource())


def test_a_finished_run_is_returned_as_it_is(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted.run_dir / "checkpoints").iterdir()}
    assert train(tiny_config(), uninterrupted.run_dir, TinySource()) == uninterrupted
    assert before == {path: path.stat().st_mtime_ns for path in (uninterrupted.run_dir / "checkpoints").iterdir()}


def test_a_finished_run_is_evaluated_on_splits_that_came_later(uninterrupted, tmp_path):
    run_dir = shutil.copytree(uninterrupted.run_dir, tmp_path / "run")
    for splits in ("[dev]", "[dev, test]", "[test, dev]"):
        result = train(tiny_config(f"eval_splits={splits}"), run_dir, TinySource())
    rows = [row["split"] for row in read_json_lines(run_dir / "metrics.jsonl") if row["kind"] == "eval"]
    assert rows == ["dev", "test"]
    assert result.evaluations.keys() == {"dev", "test"}


def test_a_folder_of_another_training_is_refused(uninterrupted):
    with pytest.raises(ConfigError, match=r"learning_rate\.peak is 0\.02, there 0\.01$"):
        train(tiny_config("learning_rate.peak=2e-2"), uninterrupted.run_dir, TinySource())
    with pytest.raises(ConfigError, match=r"another config: seed is 1, there 0 \(and 1 more keys\)"):
        train(tiny_config("seed=1", "steps=25"), uninterrupted.run_dir, TinySource())
    other = tiny_config("steps=9999", "grow_and_drop.schedule={start: 0.001}")  # no step of that run's 24
    other = replace(other, epochs=30)
    with pytest.raises(ConfigError, match=r"another config: epochs is 30, there None"):
        train(other, uninterrupted.run_dir, TinySource())
    with pytest.raises(UserError, match="holds a training already"):
        train(tiny_config(), uninterrupted.run_dir, TinySource(), resume=False)


def test_what_decides_nothing_may_change(uninterrupted):
    train(tiny_config("checkpoint_every=3", "data.root=elsewhere"), uninterrupted.run_dir, TinySource())


def test_keys_newer_than_the_run_have_their_defaults(uninterrupted, tmp_path):
    """A checkpoint from before a key was there goes on."""
    state = checkpoint.load(uninterrupted.checkpoint)
    del state["config"]["epochs"], state["config"]["device"], state["config"]["model"]["positions"]
    checkpoint.save(tmp_path / "checkpoints", uninterrupted.steps, state)
    assert train(tiny_config(), tmp_path, TinySource()).steps == uninterrupted.steps
    with pytest.raises(ConfigError, match=r"model\.positions is 'relative', there 'none'$"):
        train(tiny_config("model.positions=relative"), tmp_path, TinySource())
