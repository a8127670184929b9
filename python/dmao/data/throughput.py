"""How fast batches are read: whether a GPU would wait for them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dmao.config import TrainConfig
from dmao.data import FRAME_SHIFT
from dmao.progress import bar
from dmao.source import CorpusSource


@dataclass(frozen=True)
class Throughput:
    """workers: processes that read ahead; 0: the training reads itself."""

    workers: int
    batches: int
    utterances: int
    audio_seconds: float
    seconds: float

    @property
    def utterances_per_second(self) -> float:
        """Of one worker."""
        return self.utterances / self.seconds / max(1, self.workers)

    def __str__(self) -> str:
        return (
            f"{self.workers} workers: {self.utterances_per_second:.0f} utterances per second and worker, "
            f"{self.audio_seconds / self.seconds:.0f} s of audio per second ({self.batches} batches)"
        )


def measure_loader(config: TrainConfig, workers: Sequence[int] = (0, 1, 2), batches: int = 200) -> list[Throughput]:
    """Reads the first `batches` batches of an epoch with each number of workers.

    The time runs from the first batch on: starting the workers is no part of it. What they have read ahead by then is,
    so take many more batches than the four that each of them keeps ready.

    Raises UserError where the corpus that `config` names cannot be read.
    """
    return [_measure(replace(config, data=replace(config.data, workers=count)), batches) for count in workers]


def _measure(config: TrainConfig, batches: int) -> Throughput:
    source = CorpusSource(config)
    reading = itertools.islice(source.train_batches(epoch=0), batches + 1)
    next(reading)
    done = utterances = frames = 0
    start = time.perf_counter()
    for batch in bar(reading, f"{config.data.workers} workers", "batch", batches):
        done += 1
        utterances += len(batch.ids)
        frames += int(batch.feature_lengths.sum())
    seconds = time.perf_counter() - start
    return Throughput(config.data.workers, done, utterances, frames * FRAME_SHIFT, seconds)
