"""Where batches come from: a prepared corpus, or anything else that answers the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from dmao.config import TrainConfig

if TYPE_CHECKING:
    from dmao.data.labels import Labels
    from dmao.data.loader import Batch, LeftOut, SpeechDataset


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


class CorpusSource:
    """A prepared corpus as `config` asks for it. Splits are opened when they are first needed.

    Raises UserError where the corpus is missing, damaged, or holds nothing that the model can use.
    """

    def __init__(self, config: TrainConfig, labels: Labels | None = None):
        from dmao.data.corpus import Corpus
        from dmao.data.features import BINS
        from dmao.data.labels import Labels

        self.config = config
        self.corpus = Corpus.load(config.data.root)
        self.inputs = BINS
        lexicon = self.corpus.lexicon()
        self.words = tuple(sorted(lexicon))
        if labels is None:
            by_sound = config.data.labels == "phonemes"
            labels = Labels.phonemes(lexicon) if by_sound else Labels.characters(lexicon)
        self.labels = labels
        self._datasets: dict[str, SpeechDataset] = {}

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See Source: the order depends on (seed, epoch) alone."""
        from dmao.data.loader import batches

        settings = self.config.data
        dataset = self._dataset(settings.train)
        seed = self.config.seed
        return batches(
            dataset, seconds=settings.batch_seconds, seed=seed, epoch=epoch, start=start, workers=settings.workers
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

    def _dataset(self, split: str) -> SpeechDataset:
        from dmao.data.loader import SpeechDataset

        if split not in self._datasets:
            first, second = self.config.model.time_pooling
            self._datasets[split] = SpeechDataset(
                self.corpus.cuts(split), self.labels, subsampling=first * second, name=split
            )
        return self._datasets[split]
