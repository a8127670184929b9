"""Files for NIST's tools: `sclite -D -r ref.stm stm -h hyp.ctm ctm`, `sclite -D -r ref.trn -h hyp.trn -i rm`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dmao.files import write_atomically


@dataclass(frozen=True)
class Segment:
    """Where an utterance comes from: seconds of a channel of a recording, and who speaks.

    reference: what is said, with marks of alternatives and optional words where there are any; "": the plain text.
    """

    recording: str
    start: float
    end: float
    channel: str = "1"
    speaker: str = "unknown"
    reference: str = ""


class TimedWord(NamedTuple):
    """A word and when it is spoken, in seconds from the beginning of its utterance."""

    word: str
    start: float
    end: float


def write_stm(path: Path, segments: Mapping[str, Segment], texts: Mapping[str, str]) -> None:
    """Segment time marks of the references: recording, channel, speaker, start, end, text; in order of time."""
    lines = [
        f"{s.recording} {s.channel} {'_'.join(s.speaker.split())} {s.start:.3f} {s.end:.3f} {texts[id]}"
        for id, s in sorted(segments.items(), key=lambda item: _place(item[1]))
        if id in texts
    ]
    _write(path, lines)


def write_ctm(path: Path, segments: Mapping[str, Segment], words: Mapping[str, Sequence[TimedWord]]) -> None:
    """Time marked words of the hypotheses: recording, channel, start, duration, word; in order of time."""
    lines = []
    for id, segment in sorted(segments.items(), key=lambda item: _place(item[1])):
        for word, start, end in words.get(id, ()):
            begin = min(segment.start + start, segment.end)
            lines.append(f"{segment.recording} {segment.channel} {begin:.3f} {max(end - start, 0.001):.3f} {word}")
    _write(path, lines)


def write_trn(path: Path, segments: Mapping[str, Segment], texts: Mapping[str, str]) -> None:
    """One text a line, with (speaker-utterance) behind."""
    _write(path, [f"{text} ({segments[id].speaker}-{id})" for id, text in sorted(texts.items())])


def _place(segment: Segment) -> tuple[str, str, float]:
    return segment.recording, segment.channel, segment.start


def _write(path: Path, lines: Iterable[str]) -> None:
    write_atomically(path, "".join(" ".join(line.split()) + "\n" for line in lines))
