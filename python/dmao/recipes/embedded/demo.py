"""The demo: baseline and grow-and-drop side by side on the embedded corpus, measured and reported."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dmao.errors import UserError

ARMS = ("baseline", "dmao")
POLL_SECONDS = 0.5


def demo_config() -> Path:
    """The configuration of the demo, shipped with the package."""
    return Path(str(resources.files(__package__) / "demo.yaml"))


def run_demo(run_dir: Path, overrides: Sequence[str] = (), hours: float = 1.0, fresh: bool = False) -> dict[str, Any]:
    """Make the corpus, train both arms, measure, and write summary.json and report.html into ``run_dir``.

    What an earlier call has finished is not repeated, and an interrupted training resumes.

    Args:
        run_dir: gets ``baseline/`` and ``dmao/`` (one run each), ``summary.json``, ``report.html``.
        overrides: changes of demo.yaml as "key=value".
        hours: training speech to synthesise.
        fresh: train again from the start.

    Returns:
        The contents of summary.json.

    Raises:
        UserError: a training failed; its own message stands above.
    """
    from dmao.config import load_config
    from dmao.data.embedded import prepare_embedded
    from dmao.recipes.embedded.summary import summarize, write_summary
    from dmao.report import write_report

    config = load_config(demo_config(), overrides)
    if fresh:
        for arm in ARMS:
            shutil.rmtree(run_dir / arm, ignore_errors=True)
    seconds: dict[str, float] = {}
    with _timed(seconds, "corpus"):
        prepare_embedded(Path(config.data.root), hours=hours)
    with _timed(seconds, "training"):
        _train_side_by_side(run_dir, overrides, config.steps)
    with _timed(seconds, "measuring"):
        summary = summarize(run_dir)
    write_summary(run_dir, {**summary, "seconds": seconds})
    write_report(run_dir, run_dir / "report.html")
    return summary


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 1)


def _train_side_by_side(run_dir: Path, overrides: Iterable[str], steps: int) -> None:
    """Train every arm in a process of its own and show how far they are."""
    processes = [_start(run_dir / arm, arm, overrides) for arm in ARMS]
    bars = [tqdm(total=steps, desc=arm, unit="step", position=i, disable=None) for i, arm in enumerate(ARMS)]
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)
            _show_progress(run_dir, bars)
            if any(process.returncode for process in processes):
                break
    except KeyboardInterrupt:
        raise UserError(f"demo: interrupted; the same command resumes from the checkpoints in {run_dir}") from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # the trainer finishes its step and writes a checkpoint
        codes = [process.wait() for process in processes]
        for bar in bars:
            bar.close()
    for arm, code in zip(ARMS, codes, strict=True):
        if code:
            log = run_dir / arm / "train.log"
            raise UserError(f"demo: training of {arm} failed (exit status {code}): {_last_line(log)} (log: {log})")


def _start(folder: Path, arm: str, overrides: Iterable[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dmao.cli", "train", str(demo_config()), "--run-dir", str(folder)]
    command += [argument for override in overrides for argument in ("--set", override)]
    command += ["--baseline"] if arm == "baseline" else []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.log").open("ab") as log:
        # A session of its own: Ctrl-C reaches the demo alone, which then stops both arms in order.
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def _show_progress(run_dir: Path, bars: Sequence[Any]) -> None:
    for arm, bar in zip(ARMS, bars, strict=True):
        row = _last_row(run_dir / arm / "metrics.jsonl")
        if row is not None and row["step"] > bar.n:
            bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['lr']:.1e}", refresh=False)
            bar.update(row["step"] - bar.n)


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last complete training row, read from the end of the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().split(b"\n")[1:-1]
    except OSError:
        return None
    rows = (json.loads(line) for line in reversed(lines))
    return next((row for row in rows if row.get("kind") == "train" and row.get("loss") is not None), None)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "no message")
