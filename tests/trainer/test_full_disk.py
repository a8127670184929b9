"""A disk without room: one line tells where and what to do, and once there is room the training goes on to the bit."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from dmao.checkpoint import list_checkpoints

from tests.mounts import small_disk
from tests.trainer.forked import Ended
from tests.trainer.runs import Runs


def assert_told(ended: Ended, place: str, why: str) -> None:
    """In the last line, and with the status of what the user can mend."""
    assert ended.status == 2, ended.said
    line = ended.said.splitlines()[-1]
    assert line.startswith(f"dmao: error: cannot write {place}"), line
    assert line.endswith(f": {why}; make room, then type the same command again"), line


def begun(runs: Runs, run_dir: Path) -> list[Path]:
    """A run that was killed as it was about to write its second checkpoint; its checkpoints."""
    runs(run_dir, place="checkpoint", entry=2)
    (first,) = list_checkpoints(run_dir / "checkpoints")
    return [first]


def test_files_that_may_not_grow(runs, tmp_path):
    """No rights are needed for a limit of the size of files, which says EFBIG in the middle of one."""
    run_dir = tmp_path / "run"
    kept = begun(runs, run_dir)
    rows = run_dir / "metrics.jsonl"
    for limit, place in [
        (kept[0].stat().st_size // 2, run_dir / "checkpoints"),
        (rows.stat().st_size - 10, run_dir),  # one of the records, whichever is longer
        (100, run_dir / "config.yaml"),
    ]:
        assert_told(runs(run_dir, file_bytes=limit), str(place), "File too large")
        assert list_checkpoints(run_dir / "checkpoints") == kept
        assert list(run_dir.rglob("*.partial")) == []
    runs.finish(run_dir)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("board", ["false", "true"])
def test_disk_that_is_full(runs, tmp_path, board):
    """With room for three quarters of a checkpoint at most."""
    disk, draw, failures = tmp_path / "disk", random.Random(0), 0
    with small_disk(disk, megabytes=16):
        run_dir = disk / "run"
        size = begun(runs, run_dir)[0].stat().st_size
        for _ in range(8):
            left = draw.randrange(0, size * 3 // 4)
            kept = list_checkpoints(run_dir / "checkpoints")
            fill(disk, left)
            ended = runs(run_dir, more=("--set", f"tensorboard={board}"))
            (disk / "filler").unlink()
            assert_told(ended, str(run_dir), "No space left on device")
            assert list_checkpoints(run_dir / "checkpoints") == kept
            failures += 1
        runs.finish(run_dir)
    print(f"\n{failures} times no room, less than {size} bytes; then equal to the uninterrupted run")


def fill(disk: Path, left: int) -> None:
    """Take all room but so many bytes."""
    with (disk / "filler").open("wb") as file:
        free = os.statvfs(disk)
        file.write(bytes(max(0, free.f_bavail * free.f_bsize - left)))
