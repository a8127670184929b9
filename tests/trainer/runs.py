"""Runs of one training, compared with the one that was never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dmao import checkpoint
from dmao.config import TrainConfig
from dmao.metrics import read_json_lines

from tests.trainer.forked import Ended, Forked, Order

OWN = {"seconds", "step_ms", "data_ms", "path"}  # what no two runs have in common
RECORDS = ("metrics.jsonl", "events.jsonl", "scores.jsonl")


@dataclass(frozen=True)
class Runs:
    """expected: the uninterrupted run.  calls: in each of its places, see Ended.  seconds: that it took."""

    forked: Forked
    folder: Path
    config: TrainConfig
    expected: Path
    calls: Mapping[str, list[int]]
    seconds: float

    @classmethod
    def start(cls, forked: Forked, folder: Path, config: TrainConfig) -> Runs:
        expected = folder / "uninterrupted"
        order = Order(arguments(folder, expected))
        ended = forked(order)
        assert ended.status == 0, ended.said
        counted = forked(Order(arguments(folder, folder / "counted"), count=True))
        return cls(forked, folder, config, expected, counted.calls, ended.seconds)

    def __call__(self, run_dir: Path, more: tuple[str, ...] = (), **order: Any) -> Ended:
        """`dmao train`, with more arguments, and with what is to happen to it."""
        return self.forked(Order((*arguments(self.folder, run_dir), *more), **order))

    def lost(self, run_dir: Path) -> int:
        """Steps that must be repeated. Every file that looks like a checkpoint must be one."""
        found = [checkpoint.load(path)["step"] for path in checkpoint.list_checkpoints(run_dir / "checkpoints")]
        done = [row["step"] for row in read_json_lines(run_dir / "metrics.jsonl") if row["kind"] == "train"]
        return max([0, *done]) - max([0, *found])

    def finish(self, run_dir: Path) -> None:
        """The command once more, undisturbed: it must end as if nothing had happened."""
        ended = self(run_dir)
        assert ended.status == 0, ended.said
        assert_same(run_dir, self.expected)


def arguments(folder: Path, run_dir: Path) -> tuple[str, ...]:
    return "train", str(folder / "config.yaml"), "--run-dir", str(run_dir)


def assert_same(run_dir: Path, expected: Path) -> None:
    """The same records, line by line, the same state, bit by bit, and no other files."""
    for name in RECORDS:
        here, there = ((folder / name).read_text().splitlines() for folder in (run_dir, expected))
        assert [_bits(json.loads(line)) for line in here] == [_bits(json.loads(line)) for line in there]
        assert here
    here, there = (
        _bits(checkpoint.load(checkpoint.list_checkpoints(d / "checkpoints")[0])) for d in (run_dir, expected)
    )
    assert here.keys() == there.keys()
    assert [key for key in there if here[key] != there[key]] == []
    assert _names(run_dir) == _names(expected)


def _bits(values: Any) -> Any:
    """Plain values that are equal where all is equal but what is each run's own."""
    if isinstance(values, Mapping):
        return {key: _bits(value) for key, value in values.items() if key not in OWN}
    if isinstance(values, torch.Tensor):
        return str(values.dtype), values.shape, values.reshape(-1).view(torch.uint8).numpy().tobytes()
    return [_bits(value) for value in values] if isinstance(values, (list, tuple)) else values


def _names(run_dir: Path) -> list[str]:
    """All files but the curves; without checksums, which times are in."""
    files = [path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file()]
    return sorted(path.as_posix()[:25] for path in files if path.parts[0] != "tensorboard")
