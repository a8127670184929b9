"""Corpora that lie on disk already: from their own formats to manifests, lexicon and features, in stages.

    manifests   what the transcripts name: segments of recordings
    checks      whether the recordings bear it out (`dmao.data.segments`)
    text        transcripts as they are trained and scored
    lexicon     pronunciations of their words
    features    of all segments; the audio itself stays where it is
    stamp       corpus.json: from now on it is complete

All that is wrong with the source is told at once, before hours go into features (`dmao.data.problems`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmao.data.corpus import LEXICON, STAMP, Corpus, hash_of_split, installed_versions, preparing, usable_cores
from dmao.data.problems import Findings, OnProblem
from dmao.data.pronounce import pronounce, read_dictionary
from dmao.data.segments import Recorded, Segment, check, normalise, recording_names
from dmao.data.stages import Stages
from dmao.errors import UserError
from dmao.files import write_atomically

if TYPE_CHECKING:
    from lhotse import MonoCut

_log = logging.getLogger(__name__)

TRAIN = "train"


@dataclass(frozen=True)
class DiskCorpus:
    """A corpus in its own format, and how to read it.

    version: raised when the same source begins to give another corpus.
    arguments: all that the result depends on, plain values; kept in the stamp.
    read: the segments that the transcripts name, in their order; what is wrong with them goes to the findings.
    clean: (text, split) -> text as it is trained or scored; "" where it holds no word.
    dictionary: file of pronunciations, and clean_word what becomes of its words; None: all words are guessed.
    scoring: files of the corpus for the official scoring, by their name in ROOT/scoring.
    language: of the texts, as the manifests name it ("en").
    """

    name: str
    version: str
    sample_rate: int
    arguments: Mapping[str, Any]
    read: Callable[[Findings], Iterable[Segment]]
    clean: Callable[[str, str], str]
    dictionary: Path | None = None
    clean_word: Callable[[str], str] = str.lower
    scoring: Callable[[], Mapping[str, bytes]] = field(default=dict)
    language: str | None = None


def prepare_from_disk(
    source: DiskCorpus,
    root: str | Path,
    *,
    on_problem: OnProblem = "refuse",
    jobs: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Prepare a corpus in `root`, or find it there. An interrupted preparation goes on behind its last full stage.

    Args:
        source: the corpus.
        root: folder for manifests and features, created if need be.
        on_problem: what becomes of utterances with something wrong: "refuse" raises one error about all of them,
            "skip" leaves them out. Either way they are listed in ROOT/problems.jsonl.
        jobs: processes that compute features; None takes all cores. Unless it is 1, they import the calling script,
            which must prepare below `if __name__ == "__main__":`.
        progress: show progress bars.

    Raises:
        UserError: problems in the source that are refused, nothing left of a split, folder that cannot be written, call
            by a script that a process of the preparation imports.
    """
    from dmao.data.features import feature_version

    root = Path(root)
    arguments = {**source.arguments, "on_problem": on_problem}
    versions = {"format": source.version, "features": feature_version(source.sample_rate)}
    versions |= installed_versions("espeakng-loader")
    # A process of this preparation that imports the script would wait for its parent to leave the folder, and the
    # parent for it.
    if getattr(multiprocessing.current_process(), "_inheriting", False) and not Corpus.find(
        root, source.name, arguments, versions
    ):
        raise UserError('a script that prepares with several jobs must do so below `if __name__ == "__main__":`')
    with preparing(root):
        if corpus := Corpus.find(root, source.name, arguments, versions):
            return corpus
        (root / STAMP).unlink(missing_ok=True)
        stages = Stages(root, {"name": source.name, "arguments": arguments, "versions": versions})
        corpus = _Preparation(source, root, stages, on_problem, jobs or usable_cores(), progress).run(
            Corpus(root, source.name, arguments, versions, {}, "", source.sample_rate)
        )
        corpus.save()
        stages.forget()
        return corpus


@dataclass
class _Preparation:
    source: DiskCorpus
    root: Path
    stages: Stages
    on_problem: OnProblem
    jobs: int
    progress: bool
    findings: Findings = field(default_factory=Findings)

    def run(self, corpus: Corpus) -> Corpus:
        source = self.source
        segments = self._stage("manifests", lambda found: [asdict(segment) for segment in source.read(found)])
        checked = self._stage("checks", lambda found: self._check([Segment(**row) for row in segments], found))
        texts = self._stage("text", lambda found: _rows(normalise(_items(checked), source.clean, found)))
        items = _items(texts)
        lexicon = self._stage("lexicon", lambda found: self._pronounce(items, found))
        self._settle()
        unspoken = set(lexicon["unspoken"])
        items = [item for item in items if _speakable(item.segment, unspoken)]
        with self._mended_later():
            self._require_all(segments, items)
        splits = self._stage("features", lambda found: self._features(items, found))
        self._settle()
        write_atomically(self.root / LEXICON, json.dumps(lexicon["words"], ensure_ascii=False, indent=0) + "\n")
        for name, content in source.scoring().items():
            write_atomically(self.root / "scoring" / name, content)
        fingerprint = hashlib.sha256("".join(split["sha256"] for split in splits.values()).encode()).hexdigest()
        problems, left_out = self.findings.counts(), dict(self.findings.left_out)
        return replace(corpus, splits=splits, fingerprint=fingerprint, problems=problems, left_out=left_out)

    def _stage(self, name: str, make: Callable[[Findings], Any]) -> Any:
        """Runs a stage, or takes what it made before; what it finds joins the findings of the others."""

        def run() -> dict[str, Any]:
            findings = Findings()
            made = make(findings)
            return {"made": made, **findings.to_dict()}

        kept = self.stages.run(name, run)
        self.findings.add(Findings.from_dict(kept))
        return kept["made"]

    def _settle(self) -> None:
        with self._mended_later():
            self.findings.settle(self.root, self.on_problem)

    @contextlib.contextmanager
    def _mended_later(self) -> Iterator[None]:
        """Where the source is refused it is about to be mended: the stages then read it anew."""
        try:
            yield
        except UserError:
            self.stages.forget()
            raise

    def _check(self, segments: list[Segment], findings: Findings) -> list[dict[str, Any]]:
        return _rows(check(segments, self.source.sample_rate, findings, self.progress))

    def _pronounce(self, items: list[Recorded], findings: Findings) -> dict[str, Any]:
        """Words that decoding may choose from: those of the dictionary and of the training split."""
        source = self.source
        known = read_dictionary(source.dictionary, source.clean_word, findings) if source.dictionary else {}
        first: dict[str, str] = {}
        for item in items:
            if item.segment.split == TRAIN:
                for word in item.segment.text.split():
                    first.setdefault(word, item.segment.where)
        spoken, guessed = pronounce(first, known)
        unspoken = sorted(first.keys() - spoken.keys())
        for word in unspoken:
            findings.problem("no pronunciation", first[word], word)
        if guessed:
            _log.info("lexicon: eSpeak NG pronounced %d of %d words of the training split", len(guessed), len(first))
        return {"words": known | spoken, "unspoken": unspoken}

    def _require_all(self, segments: list[dict[str, Any]], items: list[Recorded]) -> None:
        left = {item.segment.split for item in items}
        for split in sorted({TRAIN} | {segment["split"] for segment in segments}):
            if split not in left:
                raise UserError(f"{self.source.name}: no utterance of the split {split} can be used")

    def _features(self, items: list[Recorded], findings: Findings) -> dict[str, dict[str, Any]]:
        from dmao.data.features import add_features
        from dmao.data.manifests import CutSet, write_manifest

        splits: dict[str, dict[str, Any]] = {}
        names = recording_names(item.segment.audio for item in items)
        for split in sorted({item.segment.split for item in items}, key=lambda name: (name != TRAIN, name)):
            mine = [item for item in items if item.segment.split == split]
            described = add_features(
                self.root,
                split,
                [_cut(item, names[item.segment.audio], self.source) for item in mine],
                _content(mine),
                jobs=self.jobs,
                on_unreadable=lambda cut, reason: findings.problem("unreadable audio", cut.id, reason),
                progress=self.progress,
            )
            splits[split] = _describe(mine, described)
            for part in sorted({item.segment.part for item in mine} - {""}):
                ids = {item.segment.id for item in mine if item.segment.part == part}
                cuts = [cut for cut in described if cut.id in ids]
                write_manifest(self.root / "manifests" / f"{split}-{part}.jsonl.gz", CutSet.from_cuts(cuts))
                splits[f"{split}-{part}"] = _describe(mine, cuts)
        return splits


def _rows(items: list[Recorded]) -> list[dict[str, Any]]:
    return [asdict(item) for item in items]


def _items(rows: list[dict[str, Any]]) -> list[Recorded]:
    return [Recorded(**{**row, "segment": Segment(**row["segment"])}) for row in rows]


def _speakable(segment: Segment, unspoken: set[str]) -> bool:
    """Targets are needed for training only."""
    return segment.split != TRAIN or unspoken.isdisjoint(segment.text.split())


def _cut(item: Recorded, recording: str, source: DiskCorpus) -> MonoCut:
    from dmao.data.manifests import Span, make_cut

    segment = item.segment
    return make_cut(
        segment.id,
        Path(segment.audio),
        item.samples,
        text=segment.text,
        speaker=segment.speaker,
        language=source.language,
        custom={"reference": segment.reference} if segment.reference else None,
        sample_rate=source.sample_rate,
        span=Span(recording, item.start, item.recording_samples, segment.channel, item.channels),
    )


def _content(items: Iterable[Recorded]) -> str:
    """Hash of what is cut from where: a recording is its file and the folder of that, whatever stands above."""
    digest = hashlib.sha256()
    for item in items:
        segment = item.segment
        recording = Path(segment.audio).parts[-2:]
        place = (recording, item.recording_samples, segment.channel, item.start, item.samples)
        digest.update(f"{segment.id} {place}\n".encode())
    return digest.hexdigest()


def _describe(items: list[Recorded], cuts: list[MonoCut]) -> dict[str, Any]:
    """What a split holds: the items that became a cut, which those of unreadable audio did not."""
    seconds = round(sum(cut.duration for cut in cuts), 3)
    ids = {cut.id for cut in cuts}
    held = [item for item in items if item.segment.id in ids]
    texts = ([item.segment.text, item.segment.reference] for item in held)
    return {"utterances": len(cuts), "seconds": seconds, "sha256": hash_of_split(_content(held), texts)}
