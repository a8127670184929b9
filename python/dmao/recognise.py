"""A checkpoint and a corpus to words: label prior, search with a language model, scales tuned on dev, scored reports.

Beside a checkpoint stands its prior (NAME.prior.json), in the run's folder tuned.json and decode/SPLIT/.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from dmao.config import TrainConfig
from dmao.data import FRAME_SHIFT
from dmao.data.labels import Labels
from dmao.decode import LexiconDecoder, PrefixDecoder, Scales, greedy, mean_posterior
from dmao.errors import UserError, first_line
from dmao.evaluate import find_checkpoint, open_checkpoint, outputs
from dmao.files import read_json, require_writable, write_atomically
from dmao.parsing import from_mapping
from dmao.progress import bar
from dmao.scoring import Normaliser, Report, Segment, Utterance, align, write_ctm, write_stm, write_trn
from dmao.scoring.files import TimedWord
from dmao.source import Source, same_data

_log = logging.getLogger(__name__)
TUNED = "tuned.json"
# The searches, and the options that they have a use for.
SEARCHES: Mapping[str, tuple[str, ...]] = {
    "greedy": (),
    "prefix": ("beam", "prior_scale"),
    "lexicon": ("lm", "beam", "lm_scale", "prior_scale", "word_score"),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Search:
    """How words are searched for.

    kind: lexicon: words of the vocabulary, with `lm` (ARPA file) where there is one; prefix: the best labels, whatever
        words they make; greedy: the best label of each frame.
    beam: hypotheses kept per frame.
    """

    kind: Literal["greedy", "prefix", "lexicon"] = "lexicon"
    lm: str | None = None
    beam: int = 100
    scales: Scales = field(default_factory=Scales)

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"beam must be 1 or more, got {self.beam}")

    def __str__(self) -> str:
        """What the search uses, and nothing else."""
        parts = {"beam": f"beam {self.beam}", **self.scales.described()}
        if self.lm:
            parts["lm"] = Path(self.lm).name
        else:
            del parts["lm_scale"]
        return ", ".join([f"{self.kind} search", *(parts[name] for name in SEARCHES[self.kind] if name in parts)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Search:
        """The inverse of to_dict."""
        return from_mapping(cls, values, "search")


@dataclass(frozen=True)
class Heard:
    """What a model makes of one utterance: log-probabilities [T, V], T = 0 where it cannot process it."""

    id: str
    reference: str
    frames: np.ndarray


class Recogniser:
    """The model of a checkpoint or of a run's newest one, with data to decode.

    data: a source of batches; None opens the corpus of the checkpoint's config, in `root` if that is given.
    """

    def __init__(self, path: str | Path, data: Source | None = None, root: str | None = None):
        self.checkpoint, state = find_checkpoint(path)
        inside = self.checkpoint.parent.name == "checkpoints"
        self.folder = self.checkpoint.parent.parent if inside else self.checkpoint.parent
        self.model, self.source, self.config = open_checkpoint(state, data, root)
        self.frame_seconds = FRAME_SHIFT * self.model.config.subsampling
        self.prior_file = self.checkpoint.with_suffix(".prior.json")
        same = same_data(state, self.source)
        self._own_data = _same_root(state, root) if same is None else same

    def hear(self, split: str) -> Iterator[Heard]:
        """The model's outputs on a split, in the order of its batches; what it cannot process stands first."""
        without = np.zeros((0, len(self.source.labels)), np.float32)
        left_out = self.source.left_out(split)
        yield from (Heard(left.id, left.text, without) for left in left_out)
        found = len(left_out)
        batches = bar(self.source.eval_batches(split), split, "batch")
        for batch, log_probs, lengths in outputs(self.model, batches, self.config.precision):
            for id, text, frames, length in zip(batch.ids, batch.texts, log_probs, lengths.tolist(), strict=True):
                found += 1
                yield Heard(id, text, frames[:length].float().cpu().numpy())
        if not found:
            raise UserError(f"decode: the split '{split}' holds no utterance")

    def prior(self, batches: int | None = None) -> np.ndarray:
        """The labels' prior, from the file beside the checkpoint; where there is none, it is estimated and written.

        batches: of the training data, without augmentation; None: all. The prior is not kept where a checkpoint lies
        where nothing can be written, nor where it comes from another corpus than the model.
        """
        if self.prior_file.exists():
            return _kept(self.prior_file, lambda found: np.array(found["prior"], np.float64))
        if against := self._against_keeping():
            _log.warning("the prior is estimated, and not kept: %s", against)
        return self.estimate_prior(batches, keep=not against)

    def _against_keeping(self) -> str:
        """Why a prior must not stay beside the checkpoint, where all later commands take it; "" where it may."""
        if not self._own_data:
            return f"{self.config.data.root} may not be what the model was trained on; `dmao prior --root` keeps it"
        try:
            require_writable(self.prior_file)
        except UserError as error:
            return str(error)
        return ""

    @torch.no_grad()
    def estimate_prior(self, batches: int | None = None, keep: bool = True) -> np.ndarray:
        """The mean posterior over the training data; `keep` writes it beside the checkpoint. batches: as of `prior`."""
        if keep:
            require_writable(self.prior_file)
        epoch = self.config.data.shortest_first  # the first one whose batches are of all lengths from the start
        stream = (b for b, _ in zip(self.source.train_batches(epoch), range(batches or 1 << 62), strict=False))
        shown = bar(stream, "prior", "batch", batches)
        frames = 0

        def posteriors() -> Any:
            nonlocal frames
            for _, log_probs, lengths in outputs(self.model, shown, self.config.precision):
                for row, length in zip(log_probs, lengths.tolist(), strict=True):
                    frames += length
                    yield row[:length].float().cpu().numpy()

        prior = mean_posterior(posteriors())
        if keep:
            content = {"split": self.config.data.train, "frames": frames, "prior": prior.tolist()}
            write_atomically(self.prior_file, json.dumps(content) + "\n")
            _log.info("prior: mean posterior of %d frames, kept in %s", frames, self.prior_file)
        return prior

    def tuned(self) -> Search | None:
        """What `tune` found for this checkpoint, if it did."""
        path = self.folder / TUNED
        if not path.exists():
            return None
        of, search = _kept(path, lambda found: (str(found["checkpoint"]), Search.from_dict(found["search"])))
        if of != self.checkpoint.name:
            _log.warning("%s is of another checkpoint (%s) and is not used", path, of)
            return None
        return search

    def decoder(self, search: Search) -> Callable[[np.ndarray], list[TimedWord]]:
        """A function from log-probabilities [T, V] to words; the lexicon search alone knows when they are spoken.

        Raises UserError where labels alone spell no words, or files cannot be read.
        """
        labels = self.source.labels
        if search.kind == "lexicon":
            return self._timed(self.lexicon_decoder(search))
        _require_words(search, labels)
        if search.kind == "greedy":
            return lambda frames: _untimed(greedy(frames, labels))
        prior = self.prior() if search.scales.prior else None
        decoder = PrefixDecoder(labels, beam=search.beam, prior=prior, prior_scale=search.scales.prior)
        return lambda frames: _untimed(decoder.decode(frames))

    def lexicon_decoder(self, search: Search, prior: bool | None = None) -> LexiconDecoder:
        """The decoder itself. prior: load it in any case (True), or where its scale is not 0."""
        wanted = bool(search.scales.prior) if prior is None else prior
        return LexiconDecoder(
            self.source.labels,
            self.source.words,
            arpa=search.lm,
            beam=search.beam,
            prior=self.prior() if wanted else None,
            scales=search.scales,
        )

    def _timed(self, decoder: LexiconDecoder) -> Callable[[np.ndarray], list[TimedWord]]:
        seconds = self.frame_seconds
        return lambda frames: [
            TimedWord(word, begin * seconds, end * seconds) for word, begin, end in decoder.decode_words(frames)
        ]


def _same_root(state: Mapping[str, Any], root: str | None) -> bool:
    return root is None or Path(root).resolve() == Path(TrainConfig.from_dict(state["config"]).data.root).resolve()


def check_references(source: Source, split: str, normaliser: Normaliser) -> None:
    """Before a search: raises UserError for a reference that cannot be scored, and names its utterance."""
    for id, segment in source.segments(split).items():
        with _scoring(id):
            normaliser.reference(segment.reference)


@contextmanager
def _scoring(id: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"utterance {id}: {error}") from error


def check_search(search: Search, source: Source) -> None:
    """Before there is a model: raises UserError as `Recogniser.decoder` would."""
    if search.kind == "lexicon":
        LexiconDecoder(source.labels, source.words, arpa=search.lm, beam=search.beam)
    else:
        _require_words(search, source.labels)


def _require_words(search: Search, labels: Labels) -> None:
    if labels.kind == "phonemes":
        raise UserError(f"decode: {search.kind} search gives phonemes, not words; use the lexicon search")


def _kept(path: Path, take: Callable[[Any], T]) -> T:
    """What an earlier command has left in a JSON file. Raises UserError where it is something else."""
    try:
        return take(read_json(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}; delete it, or make it anew") from error


def decode(
    recogniser: Recogniser,
    split: str,
    search: Search,
    normaliser: Normaliser = Normaliser(),  # noqa: B008 - it is frozen
    out: Path | None = None,
) -> Report:
    """Decodes and scores a split; writes into `out` (None: RUN/decode/SPLIT):

        report.txt  report.json  alignments.txt  search.json  ref.stm  ref.trn  hyp.trn  hyp.ctm (lexicon search)

    The last four are without the words that `normaliser` drops, as sclite would count them as errors.

    Raises UserError where there is nothing to decode, or not so, or nothing can be written.
    """
    out = out or recogniser.folder / "decode" / split
    require_writable(out / "report.txt")
    recogniser.source.left_out(split)  # opens it: what is missing is told before a prior is estimated
    check_references(recogniser.source, split, normaliser)
    decoder = recogniser.decoder(search)
    plain: dict[str, str] = {}
    words: dict[str, list[TimedWord]] = {}
    for heard in recogniser.hear(split):
        plain[heard.id] = heard.reference
        words[heard.id] = [one for one in decoder(heard.frames) if one.word.lower() not in normaliser.drop]
    segments = _segments(recogniser.source, split, plain)
    texts = {id: " ".join(word for word, _, _ in found) for id, found in words.items()}
    references = {id: segments[id].reference or text for id, text in plain.items()}
    report = _score(references, texts, segments, normaliser, f"{recogniser.checkpoint.name}, {split}: {search}")
    report.write(out)
    compared = {id: normaliser.for_sclite(text) for id, text in references.items()}
    write_stm(out / "ref.stm", segments, compared)
    write_trn(out / "ref.trn", segments, compared)
    write_trn(out / "hyp.trn", segments, texts)
    if search.kind == "lexicon":
        write_ctm(out / "hyp.ctm", segments, words)
    else:  # an earlier search's words are not this one's
        (out / "hyp.ctm").unlink(missing_ok=True)
    made = search.to_dict() | {"normalisation": str(normaliser)}
    write_atomically(out / "search.json", json.dumps(made, indent=1) + "\n")
    return report


def _score(
    references: dict[str, str], texts: dict[str, str], segments: dict[str, Segment], normaliser: Normaliser, title: str
) -> Report:
    scored = []
    for id, reference in sorted(references.items()):
        with _scoring(id):
            scored.append(Utterance(id, segments[id].speaker, align(reference, texts[id], normaliser)))
    return Report(scored, title)


def _segments(source: Source, split: str, ids: Iterable[str]) -> dict[str, Segment]:
    known = source.segments(split)
    return {id: known.get(id, Segment(id, 0.0, 0.0)) for id in ids}


def _untimed(text: str) -> list[TimedWord]:
    return [TimedWord(word, 0.0, 0.0) for word in text.split()]
