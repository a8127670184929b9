"""Segments of recordings: what the transcripts of a corpus on disk name, and whether the audio bears it out."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import soundfile

from dmao.data import FRAME_SHIFT, LONGEST
from dmao.data.labels import nfc, split_words
from dmao.data.problems import Findings
from dmao.errors import first_line
from dmao.files import is_plain_name
from dmao.progress import bar

_ROUNDING = 0.011  # seconds: transcripts give hundredths
_SHOWN = 100  # characters of what is wrong


@dataclass(frozen=True)
class Segment:
    """One utterance as its corpus names it.

    audio: file; a relative path is seen from the working directory, and `check` makes it absolute.
    channel: from 0.  start, end: seconds; None: to the end of the recording.
    text: as written in the corpus, then as it is trained and scored (NFC).
    reference: of an evaluation, with NIST's marks of alternatives and optional words (`dmao.scoring`); "": as `text`.
    split: that it belongs to.  part: of the split (a split of its own as well): "swbd" of Hub5'00.
    where: file and line that name it.
    """

    id: str
    audio: str
    text: str
    speaker: str
    split: str
    where: str
    start: float = 0.0
    end: float | None = None
    channel: int = 0
    part: str = ""
    reference: str = ""

    @property
    def recording(self) -> str:
        """Name of the recording; several may have the same (`recording_names`)."""
        return Path(self.audio).stem


@dataclass(frozen=True)
class Recorded:
    """A segment with what its recording is: `start` and `samples` in samples, within `recording_samples`."""

    segment: Segment
    start: int
    samples: int
    recording_samples: int
    channels: int


def seconds(text: str) -> float:
    """A time in a transcript. ValueError where it is no number, or not one of any recording."""
    value = float(text)
    if not abs(value) <= LONGEST:
        raise ValueError(f"not a time: {text}")
    return value


def recording_names(files: Iterable[str]) -> dict[str, str]:
    """File -> name of its recording: the stem; where several files have the same, as many folders as tell them apart.

    Blanks become "_", as they part the columns of NIST's files; names that are then the same get numbers.
    """
    paths = {file: Path(file) for file in files}
    sharing: dict[str, set[Path]] = defaultdict(set)
    for path in paths.values():
        sharing[path.stem].add(path)
    found: dict[Path, str] = {}
    for stem, group in sharing.items():
        names, depth = dict.fromkeys(group, stem), 1
        while len(set(names.values())) < len(group):
            depth += 1
            names = {path: "/".join(path.parts[-depth:]) for path in group}
        found |= names
    taken: set[str] = set()
    for path in sorted(found):
        plain = "_".join(found[path].split())
        numbered = (f"{plain}-{number}" for number in count(2))
        found[path] = next(name for name in chain([plain], numbered) if name not in taken)
        taken.add(found[path])
    return {file: found[path] for file, path in paths.items()}


def usable_id(id: str, where: str, findings: Findings) -> bool:
    """Whether an id may become the name of a file; one that may not is a problem."""
    if not (usable := is_plain_name(id)):
        findings.problem("bad id", where, f"{id[:_SHOWN]!r} cannot become the name of a file")
    return usable


def check(segments: list[Segment], sample_rate: int, findings: Findings, progress: bool = True) -> list[Recorded]:
    """The segments that can be used, their audio by its absolute path; what is wrong with others goes to `findings`.

    Reads the headers of all recordings. Looked for: missing and unreadable audio, another sample rate, channels that
    are not there, ids given twice or unfit for a file name, segments without a frame, beyond the end of the recording
    (by more than the rounding of hundredths), or overlapping within a channel.
    """
    segments = [replace(segment, audio=str(Path(segment.audio).absolute())) for segment in segments]
    headers = _headers({s.audio for s in segments}, sample_rate, findings, progress)
    ids: set[str] = set()
    good = []
    for segment in segments:
        header = headers[segment.audio]
        if header is None:
            findings.left_out["recording cannot be used"] += 1
        elif not usable_id(segment.id, segment.where, findings):
            continue
        elif segment.id in ids:
            findings.problem("duplicate id", segment.where, segment.id)
        elif segment.channel >= header.channels:
            detail = f"channel {segment.channel} of {segment.audio}, which has {header.channels}"
            findings.problem("missing channel", segment.where, detail)
        elif found := _place(segment, header, sample_rate, findings):
            good.append(found)
        ids.add(segment.id)
    return _without_overlaps(good, findings)


@dataclass(frozen=True)
class _Header:
    samples: int
    channels: int


def _headers(
    paths: Iterable[str], sample_rate: int, findings: Findings, progress: bool
) -> Mapping[str, _Header | None]:
    order = sorted(paths)
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(_read_header, order)
        found = list(bar(read, "recordings", "file", len(order), shown=progress))
    headers: dict[str, _Header | None] = {}
    for path, header in zip(order, found, strict=True):
        headers[path] = None
        if isinstance(header, tuple):
            findings.problem(header[0], path, header[1])
        elif header.samplerate != sample_rate:
            findings.problem("wrong sample rate", path, f"expected {sample_rate} Hz, got {header.samplerate} Hz")
        elif header.frames > LONGEST * sample_rate:
            findings.problem("unreadable audio", path, f"its header claims {header.frames} samples")
        elif header.frames == 0:
            findings.problem("empty audio", path)
        else:
            headers[path] = _Header(header.frames, header.channels)
    return headers


def _read_header(path: str) -> Any:
    """soundfile's header, or kind and detail of a problem."""
    try:
        return soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        if not os.path.exists(path):  # also False for a name that no file can have
            return "missing audio", ""
        with contextlib.suppress(OSError), open(path, "rb") as file:  # what may not be read is no more than unreadable
            if b"shorten" in file.read(1024):
                return "compressed sphere file", "libsndfile knows no shorten: unpack with `sph2pipe -p IN OUT`"
        return "unreadable audio", first_line(error)


def _place(segment: Segment, header: _Header, sample_rate: int, findings: Findings) -> Recorded | None:
    length = header.samples / sample_rate
    end = length if segment.end is None else segment.end
    if segment.start < 0 or end > length + _ROUNDING:
        detail = f"{segment.start:g} to {end:g} s of {length:g} s of {segment.recording}"
        findings.problem("outside of the audio", segment.where, detail)
        return None
    first, last = round(segment.start * sample_rate), min(round(end * sample_rate), header.samples)
    if last - first < FRAME_SHIFT * sample_rate:
        detail = f"{segment.start:g} to {end:g} s, less than a frame ({FRAME_SHIFT:g} s)"
        findings.problem("no length", segment.where, detail)
        return None
    return Recorded(segment, first, last - first, header.samples, header.channels)


def _without_overlaps(found: list[Recorded], findings: Findings) -> list[Recorded]:
    """Of two segments of one channel that overlap by more than rounding, the later one is left out."""
    ends: dict[tuple[str, int], tuple[float, str]] = defaultdict(lambda: (0.0, ""))
    overlapping = set()
    for item in sorted(found, key=lambda item: (item.segment.audio, item.segment.channel, item.segment.start)):
        segment = item.segment
        until, before = ends[segment.audio, segment.channel]
        if segment.start < until - _ROUNDING:
            detail = f"begins at {segment.start:g} s, {before} ends at {until:g} s"
            findings.problem("overlapping segments", segment.where, detail)
            overlapping.add(segment.id)
        else:
            ends[segment.audio, segment.channel] = (segment.end or float("inf"), segment.id)
    return [item for item in found if item.segment.id not in overlapping]


def normalise(found: list[Recorded], clean: Callable[[str, str], str], findings: Findings) -> list[Recorded]:
    """The segments with their texts as `clean(text, split)` leaves them, in NFC; without those that hold no word.

    Where a reference says what may be heard, what is heard beside counts: such a segment stays.
    """
    kept = []
    for item in found:
        segment = item.segment
        if not segment.text.strip():
            findings.problem("empty transcript", segment.where, segment.id)
            continue
        text = " ".join(split_words(clean(segment.text, segment.split)))
        if text or segment.reference:
            kept.append(replace(item, segment=replace(segment, text=text, reference=nfc(segment.reference))))
        else:
            findings.left_out["no word in the transcript"] += 1
    return kept
