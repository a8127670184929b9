"""What a run writes while it trains: JSON lines, and the same numbers for TensorBoard.

Rows are cut back to the checkpoint when a run resumes, so a killed run leaves neither gaps nor duplicates.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from dmao.errors import UserError
from dmao.files import write_atomically, writing


class JsonLines:
    """A file of JSON objects, one per line, each with an integer "step"."""

    def __init__(self, path: Path, resume_step: int = 0):
        """Opens `path` for appending, keeping only the rows up to `resume_step` (0: starts empty)."""
        self.path = path
        kept = [row for row in read_json_lines(path) if row["step"] <= resume_step] if resume_step else []
        write_atomically(path, "".join(map(_to_line, kept)))
        # Line by line: who watches the run sees rows at once. A kill may cut the last one; reading allows for that.
        with writing(path):
            self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row; `flush` puts it on the disk."""
        with writing(self.path):
            self._file.write(_to_line(row))

    def flush(self) -> None:
        """Puts everything written so far on the disk: a checkpoint counts on the rows before it.

        Raises UserError where the file is gone: what is written would go nowhere, or beside the checkpoints.
        """
        with writing(self.path):
            if not self.path.exists():
                raise UserError(f"{self.path} is gone: the run's folder was moved or removed while it was written")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file. Whoever counts on the rows has flushed them: a disk that is full was told of before."""
        with suppress(OSError):
            self._file.close()


def read_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON lines file, without the lines that are damaged (a kill cut the last one short). A missing file
    has none.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row


def _to_line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN: what is not finite is written as null.
    return json.dumps(finite(row), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Plain values with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether it is as `Recorder.evaluation` writes it: a row that somebody has changed is evaluated anew."""
    numbers = [row.get("cer"), row.get("wer"), row.get("ce") or 0.0]
    return (
        row.get("kind") == "eval"
        and isinstance(row.get("split"), str)
        and all(isinstance(number, int | float) for number in numbers)
    )


class Recorder:
    """All records of one run: metrics.jsonl, events.jsonl, scores.jsonl and tensorboard/ in `run_dir`."""

    def __init__(self, run_dir: Path, resume_step: int = 0, tensorboard: bool = True):
        self.metrics = JsonLines(run_dir / "metrics.jsonl", resume_step)
        self.events = JsonLines(run_dir / "events.jsonl", resume_step)
        self.scores = JsonLines(run_dir / "scores.jsonl", resume_step)
        self._board_folder = run_dir / "tensorboard"
        self._board = _open_board(self._board_folder, resume_step) if tensorboard else None

    def train(self, step: int, **values: Any) -> None:
        """What one training step did."""
        self.metrics.write({"kind": "train", "step": step, **values})
        self._scalars("train", step, values)

    def evaluation(self, step: int, split: str, **values: Any) -> None:
        """Results on a split after `step`."""
        self.metrics.write({"kind": "eval", "split": split, "step": step, **values})
        self._scalars(split, step, values)

    def event(self, row: Mapping[str, Any]) -> None:
        """A grow-and-drop event, as `Event.to_dict` gives it."""
        self.events.write(row)
        self._scalars("components", row["step"], row["counts_after"])

    def health(self, step: int, cosines: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Cosines of copies and their sources, per module and side (1: a copy has not come apart)."""
        self.metrics.write({"kind": "health", "step": step, "copy_cosine": cosines})
        values = [value for sides in cosines.values() for side in sides.values() for value in side]
        if values:
            self._scalars("structure", step, {"copy_cosine": sum(values) / len(values)})

    def score_row(self, step: int, scores: Mapping[str, list[float]]) -> None:
        """The scores of all components, by module."""
        self.scores.write({"step": step, "scores": dict(scores)})

    def flush(self) -> None:
        """Puts all records on the disk."""
        for file in (self.metrics, self.events, self.scores):
            file.flush()
        if self._board is not None:
            with writing(self._board_folder):
                self._board.flush()

    def close(self) -> None:
        """Closes all files, as JsonLines.close does."""
        for file in (self.metrics, self.events, self.scores):
            file.close()
        if self._board is not None:
            with suppress(OSError):
                self._board.close()

    def _scalars(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        with writing(self._board_folder):
            for name, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._board.add_scalar(f"{group}/{name}", value, step)


def _open_board(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "tensorboard is not installed: pip install tensorboard, or set tensorboard: false in the config"
        ) from error
    # purge_step hides what a killed run wrote behind its last checkpoint.
    with writing(folder):
        return SummaryWriter(str(folder), purge_step=resume_step + 1)
