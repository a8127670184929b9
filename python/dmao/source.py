"""Where batches come from: a prepared corpus, or anything else that answers the same questions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

from dmao.config import TrainConfig
from dmao.errors import UserError

if TYPE_CHECKING:
    from dmao.data.labels import Entry, Labels
    from dmao.data.loader import Batch, LeftOut, SpeechDataset
    from dmao.scoring.files import Segment

_log = logging.getLogger(__name__)


class Source(Protocol):
    """What `train` and `evaluate` ask of data.

    labels: what the targets mean; kept in checkpoints and compared on resume.
    inputs: features per frame.
    words: the vocabulary that lexicon decoding may choose from.
    """

    @property
    def labels(self) -> Labels: ...

    @property
    def inputs(self) -> int: ...

    @property
    def words(self) -> Sequence[str]: ...

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on; their order is a function of the epoch."""

    def batches_per_epoch(self) -> int:
        """How many batches the first epoch has; asked where the config counts epochs."""

    def eval_batches(self, split: str) -> Iterator[Batch]:
        """The batches of a split, always in the same order."""

    def left_out(self, split: str) -> Sequence[LeftOut]:
        """The utterances of a split that are in no batch; a score counts their words as deleted."""

    def segments(self, split: str) -> Mapping[str, Segment]:
        """Where the utterances of a split come from, and who speaks, by their ids."""


def _channel(number: int, channels: int) -> str:
    """As NIST's files name it: two are the sides of a call."""
    return "AB"[number] if channels == 2 else str(number + 1)


def with_steps(config: TrainConfig, source: Source) -> TrainConfig:
    """`config` with as many steps as its epochs are on this data; as it is where it counts steps."""
    if config.epochs is None:
        return config
    return replace(config, steps=config.epochs * source.batches_per_epoch())


def saved_source(state: Mapping[str, Any], config: TrainConfig) -> CorpusSource:
    """The corpus of `config`, with the labels in a checkpoint's state."""
    from dmao.data.labels import Labels

    return CorpusSource(config, Labels.from_state_dict(state["labels"]))


def same_data(state: Mapping[str, Any], source: Source) -> bool | None:
    """Whether a checkpoint's state is of a training on what `source` trains on; None where one of them does not tell.

    Checkpoints of earlier versions have no fingerprint.
    """
    kept, found = state.get("data"), fingerprint(source)
    return kept == found if isinstance(kept, str) and found is not None else None


def fingerprint(source: Source) -> str | None:
    """Of what a source trains on: its attribute `fingerprint`, where that is there and a string."""
    found = getattr(source, "fingerprint", None)
    return found if isinstance(found, str) else None


def sample_rate(source: Source) -> int | None:
    """Of the audio that a source's features are of: its attribute `sample_rate`, where that is there and a number."""
    found: Any = getattr(source, "sample_rate", None)
    whole = isinstance(found, Integral) or (isinstance(found, float) and found.is_integer())
    return int(found) if whole and not isinstance(found, bool) else None


def require_same_rate(state: Mapping[str, Any], source: Source) -> None:
    """Raises UserError where a checkpoint's state is of a training on audio of another sample rate: the bins of its
    features are of other frequencies. Checkpoints of earlier versions, and some sources, do not tell their rate.
    """
    expected, found = state.get("sample_rate"), sample_rate(source)
    if expected is not None and found is not None and expected != found:
        raise UserError(
            f"data: the model of {state.get('path', 'the state')} was trained on audio of {expected} Hz, got a corpus "
            f"of {found} Hz, whose features are others"
        )


class CorpusSource:
    """A prepared corpus as `config` asks for it. Splits are opened when they are first needed.

    fingerprint: of the training split alone, so that other splits may be added to the corpus.
    sample_rate: of the audio, in Hz.

    Raises UserError where the corpus is missing, damaged, or holds nothing that the model can use.
    """

    def __init__(self, config: TrainConfig, labels: Labels | None = None):
        from dmao.data.corpus import Corpus
        from dmao.data.features import BINS

        self.config = config
        self.corpus = Corpus.load(config.data.root)
        described = self.corpus.splits.get(config.data.train)
        self.fingerprint = described.get("sha256") if isinstance(described, Mapping) else None
        self.sample_rate = self.corpus.sample_rate
        self.inputs = BINS
        lexicon = self.corpus.lexicon()
        if labels is None:
            labels = self._make_labels(lexicon)
        self.labels = labels
        self.words = labels.words or tuple(sorted(lexicon))
        self._datasets: dict[str, SpeechDataset] = {}

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See Source: the order depends on (seed, epoch) alone."""
        from dmao.data.loader import batches

        settings = self.config.data
        return batches(
            self._dataset(settings.train),
            seconds=settings.batch_seconds,
            seed=self.config.seed,
            epoch=epoch,
            start=start,
            shortest_first=epoch < settings.shortest_first,
            workers=settings.workers,
        )

    def batches_per_epoch(self) -> int:
        """See Source."""
        from dmao.data.loader import epoch_plan

        settings = self.config.data
        return len(epoch_plan(self._dataset(settings.train), seconds=settings.batch_seconds, seed=self.config.seed))

    def eval_batches(self, split: str) -> Iterator[Batch]:
        """See Source."""
        from dmao.data.loader import batches

        return batches(self._dataset(split), seconds=self.config.data.batch_seconds, shuffle=False)

    def left_out(self, split: str) -> Sequence[LeftOut]:
        """See Source."""
        return self._dataset(split).left_out

    def segments(self, split: str) -> Mapping[str, Segment]:
        """See Source."""
        from dmao.scoring.files import Segment

        return {
            cut.id: Segment(
                recording=cut.recording_id,
                start=cut.start,
                end=cut.end,
                channel=_channel(cut.channel, cut.recording.num_channels),
                speaker=cut.supervisions[0].speaker or "unknown",
                reference=(cut.supervisions[0].custom or {}).get("reference") or cut.supervisions[0].text or "",
            )
            for cut in self.corpus.cuts(split)
        }

    def _make_labels(self, lexicon: Mapping[str, Entry]) -> Labels:
        from dmao.data.labels import Labels
        from dmao.data.loader import text_of

        settings = self.config.data
        if settings.labels == "phonemes":
            return Labels.phonemes(lexicon, settings.g2p)
        if settings.labels == "bpe":
            return Labels.bpe(map(text_of, self.corpus.cuts(settings.train)), settings.bpe_size)
        return Labels.characters(lexicon)

    def _dataset(self, split: str) -> SpeechDataset:
        from dmao.data.loader import SpeechDataset

        if split not in self._datasets:
            first, second = self.config.model.time_pooling
            self._datasets[split] = SpeechDataset(
                self.corpus.cuts(split),
                self.labels,
                subsampling=first * second,
                name=split,
                unspellable="leave out" if split == self.config.data.train else "keep",
            )
            self._tell_guesses(split)
        return self._datasets[split]

    def _tell_guesses(self, split: str) -> None:
        guessed = getattr(self.labels, "guessed", {})
        if guessed:
            named = ", ".join(f"{word} ({' '.join(phones)})" for word, phones in sorted(guessed.items()))
            _log.warning("%s: eSpeak NG pronounced %d words beyond the lexicon so far: %s", split, len(guessed), named)
