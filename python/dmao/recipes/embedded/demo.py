"""The demo: baseline and grow-and-drop side by side on the embedded corpus, measured and reported."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmao.errors import UserError
from dmao.recipes.embedded.side_by_side import ARMS, locked, train_side_by_side

if TYPE_CHECKING:
    from dmao.config import TrainConfig

_log = logging.getLogger(__name__)


def demo_config() -> Path:
    """The configuration of the demo, shipped with the package."""
    return Path(str(resources.files(__package__) / "demo.yaml"))


def run_demo(
    run_dir: Path, overrides: Sequence[str] = (), hours: float = 1.0, fresh: bool = False, pairs: int = 40
) -> dict[str, Any]:
    """Make the corpus, train both arms, measure, and write summary.json and report.html into ``run_dir``.

    What an earlier call has finished is not repeated, and an interrupted training resumes.

    Args:
        run_dir: gets ``baseline/`` and ``dmao/`` (one run each), ``summary.json``, ``report.html``.
        overrides: changes of demo.yaml as "key=value".
        hours: training speech to synthesise.
        fresh: train again from the start.
        pairs: of steps, to measure step times and overhead with.

    Returns:
        The contents of summary.json. "seconds" has the parts of this call: what was done before takes next to
        nothing.

    Raises:
        UserError: a training failed, ``run_dir`` holds one with other overrides or another corpus, or
            another demo is at work in it.
        TrainingInterrupted: a signal stopped the trainings; their states are saved.
    """
    from dmao.config import load_config
    from dmao.recipes.embedded.summary import summarize, write_summary
    from dmao.report import write_report

    config = load_config(demo_config(), overrides)
    _check_comparable(config)
    with locked(run_dir) as lock:
        if fresh:
            for arm in ARMS:
                shutil.rmtree(run_dir / arm, ignore_errors=True)
            (run_dir / "corpus").unlink(missing_ok=True)
        seconds: dict[str, float] = {}
        with _timed(seconds, "corpus"):
            _make_corpus(run_dir, Path(config.data.root), hours)
        _log.info("training %s and %s, %d steps each; they log to train.log in %s", *ARMS, config.steps, run_dir / "*")
        with _timed(seconds, "training"):
            train_side_by_side(run_dir, demo_config(), overrides, config.steps, lock)
        _log.info("measuring step times and overhead")
        with _timed(seconds, "measuring"):
            summary = summarize(run_dir, pairs)
        summary["seconds"] = seconds
        write_summary(run_dir, summary)
        write_report(run_dir, run_dir / "report.html")
        return summary


def _check_comparable(config: TrainConfig) -> None:
    """Refuse, before minutes of training, what could not be summarised after it."""
    from dmao.decode.lexicon import flashlight
    from dmao.recipes.embedded.summary import SPLIT

    if config.grow_and_drop.schedule is None:
        raise UserError("demo: grow_and_drop.schedule must not be null: without events there is nothing to compare")
    if SPLIT not in config.eval_splits:
        raise UserError(f"demo: eval_splits must have the split '{SPLIT}', got {', '.join(config.eval_splits)}")
    flashlight()  # which decodes that split


def _make_corpus(run_dir: Path, root: Path, hours: float) -> None:
    """Make the corpus, or find it; a training must not go on with other data than it began with."""
    from dmao.data.embedded import prepare_embedded

    corpus = prepare_embedded(root, hours=hours)
    _log.info("%s", corpus)
    mark = run_dir / "corpus"
    if not mark.exists():
        mark.write_text(corpus.fingerprint + "\n")
    elif mark.read_text().strip() != corpus.fingerprint:
        raise UserError(
            f"demo: {run_dir} was trained on another corpus (other --hours?); choose another --run-dir, or --fresh"
        )


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 1)
