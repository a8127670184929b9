"""Progress bars of trainings that run in processes of their own, drawn from what these write."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

_COARSE = 0.05  # seconds that the clock of a file system may be behind time.time()


class NewRows:
    """The rows that another process appends to a JSON lines file from `since` (time.time()) on.

    A training cuts its file back and replaces it when it starts, so an older file is one of an earlier start.
    """

    def __init__(self, path: Path, since: float):
        self.path = path
        self.since = since
        self._file: BinaryIO | None = None
        self._rest = b""

    def read(self) -> Iterator[dict[str, Any]]:
        """The complete rows that have come since the last call."""
        if self._file is None:
            if not self.path.exists() or self.path.stat().st_mtime < self.since - _COARSE:
                return
            self._file = self.path.open("rb")
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        yield from map(json.loads, lines)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class TrainingBar:
    """One bar: steps done, loss, learning rate and the newest word error rate. Shown on a terminal only."""

    def __init__(self, name: str, folder: Path, steps: int, position: int):
        self._rows = NewRows(folder / "metrics.jsonl", since=time.time())
        self._bar = tqdm(total=steps, desc=f"{name:<8}", unit="step", position=position, disable=None)
        self._started = False
        self._shown: dict[str, str] = {}

    def update(self) -> None:
        """Catch up with the training."""
        step = 0
        for row in self._rows.read():
            if row["kind"] == "train":
                step = row["step"]
                loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
                self._shown |= {"loss": loss, "lr": f"{row['lr']:.1e}"}
            elif row["kind"] == "eval":
                self._shown[f"{row['split']} WER"] = f"{row['wer']:.1f}%"
        if step:
            self._bar.set_postfix(self._shown, refresh=False)
            self._move_to(step)

    def _move_to(self, step: int) -> None:
        if not self._started:  # what an earlier start has done says nothing about the rate of this one
            self._bar.initial = self._bar.n = step
            self._bar.start_t = self._bar.last_print_t = time.time()
            self._started = True
        self._bar.update(step - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()
        self._rows.close()
