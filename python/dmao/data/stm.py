"""NIST's segment time marks: `recording channel speaker start end [<labels>] text`, one segment a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dmao.data.problems import Findings
from dmao.data.segments import seconds

NOT_SCORED = {"ignore_time_segment_in_scoring", "inter_segment_gap"}


@dataclass(frozen=True)
class StmLine:
    """One segment. channel: as written, "1" or "A".  labels: "<o,f0,male>" or ""."""

    recording: str
    channel: str
    speaker: str
    start: float
    end: float
    labels: str
    text: str
    where: str


def read_stm(path: Path, findings: Findings) -> Iterator[StmLine]:
    """The segments that are to be scored; comments (;;) are skipped, gaps are counted, other lines are problems."""
    for where, line in findings.lines(path):
        if line.startswith(";;"):
            continue
        fields = line.split(maxsplit=5)
        if len(fields) < 5:
            detail = f"expected recording, channel, speaker, start, end, got {line.strip()!r}"
            findings.problem("bad line", where, detail)
            continue
        try:
            start, end = seconds(fields[3]), seconds(fields[4])
        except ValueError:
            findings.problem("bad line", where, f"expected times in seconds, got {fields[3]} {fields[4]}")
            continue
        labels, text = _labels(fields[5] if len(fields) > 5 else "")
        if not NOT_SCORED.isdisjoint((fields[2].lower(), *text.lower().split())):
            findings.left_out["not to be scored"] += 1
            continue
        yield StmLine(fields[0], fields[1], fields[2], start, end, labels, text, where)


def _labels(text: str) -> tuple[str, str]:
    """Labels and text: what begins with "<o," or "<O," is labels; "<unk>" is text."""
    first, *rest = text.split(maxsplit=1) or [""]
    if first.startswith("<") and first.endswith(">") and "," in first:
        return first, "".join(rest).strip()
    return "", text.strip()


def join_stm(paths: Iterable[Path]) -> bytes:
    """The files one behind the other; the last line of each has an end."""
    contents = (path.read_bytes() for path in paths)
    return b"".join(content if content.endswith(b"\n") else content + b"\n" for content in contents)
