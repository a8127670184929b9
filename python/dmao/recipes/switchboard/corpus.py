"""Switchboard-1 (LDC97S62) with the Mississippi State transcripts, and the evaluations in telephone speech.

Recordings are .sph with one speaker a channel. lhotse's own reader names both channels' speakers the same, leaves the
markup of the transcripts in, and makes no dev split.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dmao.data.corpus import Corpus
from dmao.data.disk import TRAIN, DiskCorpus, prepare_from_disk
from dmao.data.problems import Findings, OnProblem
from dmao.data.segments import Segment, seconds
from dmao.data.stm import StmLine, join_stm, read_stm
from dmao.errors import UserError
from dmao.recipes.switchboard.text import clean, clean_reference, clean_word, marked, without_noises

DICTIONARY = "sw-ms98-dict.text"
# Beginning of a recording's name -> part of the evaluation.
PARTS: dict[str, dict[str, str]] = {
    "hub5-00": {"sw": "swbd", "en": "callhome"},
    "hub5-01": {},
    "rt03s": {"sw": "swbd", "fsh": "fisher"},
}
_OF_SEVERAL_STM = ("rt03s",)
_CHANNELS = {"a": 0, "b": 1, "1": 0, "2": 1}
_SIDE = re.compile(r"sw(\d+)([AB])", re.IGNORECASE)  # sw2001A


def prepare_switchboard(
    sources: Sequence[Path],
    root: str | Path,
    *,
    evaluations: Mapping[str, Sequence[Path]] | None = None,
    dev_utterances: int = 4000,
    dictionary: Path | None = None,
    on_problem: OnProblem = "refuse",
    jobs: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Prepare Switchboard in `root`, or find it there; see `prepare_from_disk` for the errors.

    Args:
        sources: folders that hold, at any depth, sw02001.sph and so on, sw2001A-ms98-a-trans.text and so on.
        root: folder of the prepared corpus; `scoring` in it gets NAME.stm and NAME.glm of the evaluations.
        evaluations: hub5-00, hub5-01, rt03s -> folders that hold, at any depth, its .sph files and the .stm that name
            them, one, of rt03s several in one folder; RT03S: the two folders english/cts, as the package has other
            recordings too.
        dev_utterances: the first so many utterances (by recording, channel, time) are the dev split.
        dictionary: pronunciations; None takes sw-ms98-dict.text of the transcripts.
        on_problem, jobs, progress: see `prepare_from_disk`.
    """
    sources = [source.resolve() for source in sources]
    given = {name: folders for name, folders in (evaluations or {}).items() if folders}
    sets = [_Evaluation(name, [folder.resolve() for folder in folders]) for name, folders in given.items()]
    dictionary = dictionary or next((path for source in sources for path in sorted(source.rglob(DICTIONARY))), None)

    def read(findings: Findings) -> Iterator[Segment]:
        if dictionary is None:
            findings.problem("missing file", ", ".join(map(str, sources)), f"no {DICTIONARY} below it")
        yield from read_conversations(sources, dev_utterances, findings)
        for evaluation in sets:
            yield from evaluation.read(findings)

    corpus = DiskCorpus(
        name="switchboard",
        version="2",
        sample_rate=8_000,
        arguments={
            "sources": list(map(str, sources)),
            "evaluations": {evaluation.name: list(map(str, evaluation.folders)) for evaluation in sets},
            "dev_utterances": dev_utterances,
            "dictionary": dictionary and str(dictionary.resolve()),
        },
        read=read,
        clean=_clean,
        dictionary=dictionary,
        clean_word=clean_word,
        scoring=lambda: {name: content for evaluation in sets for name, content in evaluation.scoring().items()},
        language="en",
    )
    return prepare_from_disk(corpus, root, on_problem=on_problem, jobs=jobs, progress=progress)


def read_conversations(sources: Sequence[Path], dev_utterances: int, findings: Findings) -> Iterator[Segment]:
    """The utterances of train and dev; what is silence is counted."""
    audio = _by_name(sources, "sw0????.sph")
    transcripts = _by_name(sources, "*-trans.text")
    if not transcripts:
        findings.problem("missing part", ", ".join(map(str, sources)), "no *-trans.text below it")
    utterances: list[Segment] = []
    sides = set()
    for path in transcripts.values():
        if not (side := _SIDE.fullmatch(path.name.split("-")[0])):
            findings.problem("bad name", path, "expected one as sw2001A-ms98-a-trans.text, with the channel, A or B")
            continue
        name, channel = f"sw0{side[1]}", side[2].lower()
        sides.add((name, channel))
        recording = audio.get(name, sources[0] / f"{name}.sph")
        utterances += _read_side(path, recording, f"{name}-{side[2]}", _CHANNELS[channel], findings)
    for name, path in audio.items():
        for channel in "ab":
            if (name, channel) not in sides:
                findings.problem("missing transcript", path, f"of channel {channel.upper()}")
    utterances.sort(key=lambda segment: (segment.recording, segment.channel, segment.start))
    for number, utterance in enumerate(utterances):
        yield replace(utterance, split="dev" if number < dev_utterances else TRAIN)


def _read_side(path: Path, audio: Path, speaker: str, channel: int, findings: Findings) -> Iterator[Segment]:
    for where, line in findings.lines(path):
        id, *fields = line.split(maxsplit=3)
        try:
            start, end = (seconds(time) for time in fields[:2])
        except ValueError:
            findings.problem("bad line", where, f"expected id, start, end, words, got {line.strip()!r}")
            continue
        text = fields[2] if len(fields) > 2 else ""
        if text.strip() == "[silence]":
            findings.left_out["silence"] += 1
        else:
            yield Segment(id, str(audio), text, speaker, TRAIN, where, start, end, channel)


def _by_name(folders: Sequence[Path], pattern: str) -> dict[str, Path]:
    """Stem in lower case -> file below the folders."""
    return {path.stem.lower(): path for folder in folders for path in sorted(folder.rglob(pattern))}


def _clean(text: str, split: str) -> str:
    if split == TRAIN:
        return clean(text)
    return without_noises(clean(text)) if split == "dev" else clean_reference(text)


@dataclass
class _Evaluation:
    """One of the evaluations, in the folders that hold its recordings and its references."""

    name: str
    folders: list[Path]

    def read(self, findings: Findings) -> Iterator[Segment]:
        seen = set()
        for line in itertools.chain.from_iterable(read_stm(path, findings) for path in self._references):
            name = line.recording.lower()
            seen.add(name)
            channel = _CHANNELS.get(line.channel.lower())
            if channel is None:
                findings.problem("bad line", line.where, f"channel must be A or B, got {line.channel}")
            else:
                yield self._segment(line, name, channel)
        for name, path in self._audio.items():
            if name not in seen:
                findings.problem("missing transcript", path, f"not in {_names(self._references)}")

    def scoring(self) -> dict[str, bytes]:
        """The references, and the rules of which words count as the same."""
        rules = sorted(path for folder in self.folders for path in folder.rglob("*.glm"))
        names = [f"{self.name}.glm"] if len(rules) == 1 else [f"{self.name}-{path.stem}.glm" for path in rules]
        files = {name: path.read_bytes() for name, path in zip(names, rules, strict=True)}
        return {f"{self.name}.stm": join_stm(self._references), **files}

    def _segment(self, line: StmLine, name: str, channel: int) -> Segment:
        audio = self._audio.get(name, self.folders[0] / f"{line.recording}.sph")
        prefix = name.split("_")[0].rstrip("0123456789")
        id = f"{name}-{'AB'[channel]}-{round(100 * line.start):07d}-{round(100 * line.end):07d}"
        return Segment(
            id,
            str(audio),
            line.text,
            f"{name}-{'AB'[channel]}",
            self.name,
            line.where,
            line.start,
            line.end,
            channel,
            part=PARTS[self.name].get(prefix, ""),
            reference=marked(line.text),
        )

    @cached_property
    def _audio(self) -> dict[str, Path]:
        return _by_name(self.folders, "*.sph")

    @cached_property
    def _references(self) -> list[Path]:
        """The .stm that name recordings that are here: one, of RT03S several in one folder, each segment in one."""
        found = [path for folder in self.folders for path in sorted(folder.rglob("*.stm"))]
        here = {path: segments for path in found if (segments := self._segments_of(path))}
        several = self.name in _OF_SEVERAL_STM and len({path.parent for path in here}) == 1
        repeated = len(set().union(*here.values())) < sum(map(len, here.values()))
        if not here or repeated or (len(here) > 1 and not several):
            expected = "the .stm of one folder, each segment in one" if self.name in _OF_SEVERAL_STM else "one .stm"
            raise UserError(
                f"{self.name}: expected {expected} for the recordings below {', '.join(map(str, self.folders))}, "
                f"got {', '.join(map(str, here)) or 'none'} (of {len(found)} .stm and {len(self._audio)} .sph files)"
            )
        return list(here)

    def _segments_of(self, path: Path) -> set[tuple[str, str, float]]:
        """Recording, channel and start of the segments of an .stm whose recordings are here."""
        lines = ((line.recording.lower(), line.channel, line.start) for line in read_stm(path, Findings()))
        return {segment for segment in lines if segment[0] in self._audio}


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
