"""kill -9 wherever a training may be: what goes on is the same training, and no more is lost than an interval."""

from __future__ import annotations

import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dmao.metrics import read_json_lines

from tests.trainer.forked import Ended
from tests.trainer.runs import Runs

WRITING = ("checkpoint", "checksum", "renamed", "removal")
PLACES = ("step", "event", *WRITING, "evaluation", "records", "resumption")


@dataclass
class Sweep:
    """Kills at places that are drawn; kills: place -> how many.  lost: steps, of every kill."""

    runs: Runs
    draw: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)

    def kill(self, run_dir: Path, place: str, call: int | None = None) -> bool:
        """The command, killed there; False where it has come to its end before that.

        call: of the first entry; None: a call and an entry that are drawn.
        """
        ended = self._drawn(run_dir, place) if call is None else self.runs(run_dir, place=place, call=call)
        if ended.signal == 0:
            assert ended.status == 0, ended.said
            return False
        assert ended.signal == signal.SIGKILL
        self.kills[place] += 1
        self.lost.append(self.runs.lost(run_dir))
        assert self.lost[-1] <= self.runs.config.checkpoint_every
        return True

    def _drawn(self, run_dir: Path, place: str) -> Ended:
        if place == "time":
            return self.runs(run_dir, seconds=self.draw.uniform(0, self.runs.seconds))
        calls = self.runs.calls[place]
        entry = self.draw.randint(1, min(len(calls), 6))
        return self.runs(run_dir, place=place, entry=entry, call=self.draw.randint(1, calls[entry - 1]))

    def __str__(self) -> str:
        kills = ", ".join(f"{place} {count}" for place, count in sorted(self.kills.items()))
        return f"{self.kills.total()} kills ({kills}); steps lost by one: at most {max(self.lost)}"


def test_killed_in_a_step_an_event_a_checkpoint_and_an_evaluation(runs, tmp_path):
    sweep = Sweep(runs, random.Random(0))
    for place in ("step", "checkpoint", "event", "evaluation"):
        sweep.kill(tmp_path / "run", place)
    assert sweep.kills.total() >= 3
    runs.finish(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_everywhere(runs, tmp_path):
    """At least 40 kills, no more than four to a run."""
    sweep, finished = Sweep(runs, random.Random(1)), 0
    while sweep.kills.total() < 40:
        run_dir = tmp_path / f"run-{finished}"
        for place in sweep.draw.sample([*PLACES, "time", "time"], 4):
            sweep.kill(run_dir, place)
        runs.finish(run_dir)
        finished += 1
    print(f"\n{sweep}; {finished} runs of {runs.config.steps} steps, all equal to the uninterrupted one")
    assert sweep.kills.keys() == {*PLACES, "time"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_throughout_a_checkpoint_and_an_event(runs, tmp_path):
    """A run for each place, killed on its way through it in equal distances."""
    sweep = Sweep(runs, random.Random(0))
    for place in ("event", *WRITING):
        calls = runs.calls[place][0]
        for call in range(1, calls + 1, max(1, calls // 8)):
            if not sweep.kill(tmp_path / place, place, call):
                break
        runs.finish(tmp_path / place)
    print(f"\n{sweep}")
    assert min(sweep.kills[place] for place in ("event", *WRITING)) >= 2


def test_a_second_ctrl_c_in_the_last_evaluation_loses_no_step(runs, tmp_path):
    entry = len(runs.calls["evaluation"])  # the second split: the first one has its result
    twice = (signal.SIGINT, signal.SIGINT)
    ended = runs(tmp_path / "run", place="evaluation", entry=entry, call=50, signals=twice)
    assert ended.status == 130, ended.said
    assert "interrupted" in ended.said
    assert runs.lost(tmp_path / "run") == 0
    done = [row["split"] for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "eval"]
    assert done.count("dev") == done.count("test") + 1
    runs.finish(tmp_path / "run")
