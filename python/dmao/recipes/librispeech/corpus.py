"""LibriSpeech (OpenSLR 12) and its small sister (OpenSLR 31): FLAC and `SPEAKER-CHAPTER.trans.txt`, a folder a chapter.

lhotse's own reader stops at the first line without words and passes over missing audio, so the transcripts are read
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dmao.data.corpus import Corpus
from dmao.data.disk import TRAIN, DiskCorpus, prepare_from_disk
from dmao.data.problems import Findings, OnProblem
from dmao.data.segments import Segment, usable_id

SIZES = {
    "960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "100": ("train-clean-100",),
    "mini": ("train-clean-5",),
}
_EVALUATION = {"mini": ("dev-clean-2",)}
_DEFAULT_EVALUATION = ("dev-clean", "dev-other", "test-clean", "test-other")


def prepare_librispeech(
    source: Path,
    root: str | Path,
    *,
    hours: str = "960",
    dictionary: Path | None = None,
    on_problem: OnProblem = "refuse",
    jobs: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Prepare LibriSpeech in `root`, or find it there; see `prepare_from_disk` for the errors.

    Args:
        source: the folder that holds train-clean-100 and so on.
        root: folder of the prepared corpus.
        hours: "960", "100", or "mini" (5 h, with dev-clean-2 for evaluation).
        dictionary: pronunciations, as librispeech-lexicon.txt of OpenSLR 11; None: eSpeak NG guesses all words.
        on_problem, jobs, progress: see `prepare_from_disk`.
    """
    source = source.resolve()
    evaluation = _EVALUATION.get(hours, _DEFAULT_EVALUATION)
    parts = dict.fromkeys(SIZES[hours], TRAIN) | {part: part for part in evaluation}
    corpus = DiskCorpus(
        name="librispeech",
        version="2",
        sample_rate=16_000,
        arguments={"source": str(source), "hours": hours, "dictionary": dictionary and str(dictionary.resolve())},
        read=lambda findings: read_parts(source, parts, findings),
        clean=lambda text, split: text.lower(),
        dictionary=dictionary,
        language="en",
    )
    return prepare_from_disk(corpus, root, on_problem=on_problem, jobs=jobs, progress=progress)


def read_parts(source: Path, parts: dict[str, str], findings: Findings) -> Iterator[Segment]:
    """The utterances of the folders `parts` (folder -> split)."""
    for part, split in parts.items():
        transcripts = sorted((source / part).rglob("*.trans.txt"))
        if not transcripts:
            findings.problem("missing part", source / part, "no *.trans.txt below it")
        named = set()
        for path in transcripts:
            for where, line in findings.lines(path):
                id, _, text = line.strip().partition(" ")
                if not usable_id(id, where, findings):
                    continue
                named.add(id)
                yield Segment(id, str(path.with_name(f"{id}.flac")), text, id.split("-")[0], split, where)
        for audio in sorted((source / part).rglob("*.flac")):
            if audio.stem not in named:
                findings.problem("missing transcript", audio)
