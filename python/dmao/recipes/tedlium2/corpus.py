"""TED-LIUM release 2 (OpenSLR 19): talks as .sph, their segments as .stm, in train, dev and test.

lhotse's own reader has no text normalisation that would do, and stops at the first malformed line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dmao.data.corpus import Corpus
from dmao.data.disk import DiskCorpus, prepare_from_disk
from dmao.data.problems import Findings, OnProblem
from dmao.data.segments import Segment
from dmao.data.stm import join_stm, read_stm

SPLITS = ("train", "dev", "test")
DICTIONARY = "TEDLIUM.152k.dic"
_VARIANT = re.compile(r"\(\d+\)")
_MARK = re.compile(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]")  # <unk>, {NOISE}, {SMACK}
_APART = re.compile(r"(?<=[^\s>}\]])\s+(?=')")  # between a word, no mark, and an apostrophe


def prepare_tedlium2(
    source: Path,
    root: str | Path,
    *,
    dictionary: Path | None = None,
    on_problem: OnProblem = "refuse",
    jobs: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Prepare TED-LIUM release 2 in `root`, or find it there; see `prepare_from_disk` for the errors.

    Args:
        source: the folder TEDLIUM_release2.
        root: folder of the prepared corpus; `scoring` in it gets dev.stm and test.stm.
        dictionary: pronunciations; None takes TEDLIUM.152k.dic of the corpus.
        on_problem, jobs, progress: see `prepare_from_disk`.
    """
    source = source.resolve()
    dictionary = (dictionary or source / DICTIONARY).resolve()
    corpus = DiskCorpus(
        name="tedlium2",
        version="2",
        sample_rate=16_000,
        arguments={"source": str(source), "dictionary": str(dictionary)},
        read=lambda findings: read_talks(source, findings),
        clean=lambda text, split: clean(text),
        dictionary=dictionary,
        scoring=lambda: _references(source),
        language="en",
    )
    return prepare_from_disk(corpus, root, on_problem=on_problem, jobs=jobs, progress=progress)


def read_talks(source: Path, findings: Findings) -> Iterator[Segment]:
    """The segments of all talks that are to be scored."""
    for split in SPLITS:
        transcripts = sorted((source / split / "stm").glob("*.stm"))
        if not transcripts:
            findings.problem("missing part", source / split / "stm", "no *.stm in it")
        for path in transcripts:
            audio = source / split / "sph" / f"{path.stem}.sph"
            for line in read_stm(path, findings):
                if line.recording != path.stem:
                    findings.problem("bad line", line.where, f"names {line.recording}, expected {path.stem}")
                    continue
                id = f"{path.stem}-{round(100 * line.start):07d}-{round(100 * line.end):07d}"
                yield Segment(id, str(audio), line.text, line.speaker, split, line.where, line.start, line.end)
        talks = {path.stem for path in transcripts}
        for audio in sorted((source / split / "sph").glob("*.sph")):
            if audio.stem not in talks:
                findings.problem("missing transcript", audio, f"no {audio.stem}.stm")


def clean(text: str) -> str:
    """Lower-case words: without variants "(2)" and marks as <unk> and {NOISE}; "it 's" becomes "it's".

    Whatever begins with an apostrophe joins the word before it: "o 'clock", "kids '".
    """
    words = _VARIANT.sub("", text.lower()).replace("<sil>", " ")  # silence parts no apostrophe from its word
    return _MARK.sub(" ", _APART.sub("", words))


def _references(source: Path) -> Mapping[str, bytes]:
    splits = [split for split in SPLITS if split != "train"]
    return {f"{split}.stm": join_stm(sorted((source / split / "stm").glob("*.stm"))) for split in splits}
