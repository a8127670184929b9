"""One self-contained HTML page about a run: what was trained, what changed shape, and what it cost.

>>> from dmao.report import write_report
>>> write_report("runs/demo")  # doctest: +SKIP
PosixPath('runs/demo/report.html')
"""

from __future__ import annotations

from pathlib import Path

from dmao.files import write_atomically
from dmao.report.page import render
from dmao.report.records import read_run

__all__ = ["write_report"]


def write_report(run_root: str | Path, out_html: str | Path | None = None) -> Path:
    """Read the records under `run_root` and write the report, by default to `run_root/report.html`.

    Read are `summary.json` and, of the arms `baseline` and `dmao`, `metrics.jsonl`, `events.jsonl` and
    `scores.jsonl`. Whatever is missing, truncated or unreadable becomes a sentence in the page; the rest is
    shown. The page needs no network and no other file.

    Raises:
        FileNotFoundError: `run_root` is not a directory.
    """
    root = Path(run_root)
    if not root.is_dir():
        raise FileNotFoundError(f"write_report: run_root must be the directory of a run, got {root}")
    target = root / "report.html" if out_html is None else Path(out_html)
    write_atomically(target, render(read_run(root)))
    return target
