"""A training small enough for tests: synthetic utterances that a two-block model learns in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from dmao.config import TrainConfig, load_config
from dmao.data.labels import Labels
from dmao.data.loader import Batch, LeftOut
from dmao.randomness import generator
from dmao.scoring import Segment

BINS = 8
WORDS = ("ab", "ba", "cab", "dad", "bad")
SETTINGS = [
    "steps=24",
    "threads=1",
    "checkpoint_every=5",
    "log_scores_every=4",
    "tensorboard=false",
    "eval_splits=[]",
    "model={width: 16, blocks: 2, head_dim: 4, kernel: 3, front_channels: [2, 4, 4, 2], dropout: 0.1}",
    "spec_augment={time_masks: 1, time_width: 4, frequency_masks: [1, 2], frequency_width: 2}",
    "learning_rate.peak=1e-2",
    "grow_and_drop.schedule={start: 9, end: 17, events: 2, fraction: 0.4}",
]


def tiny_config(*overrides: str) -> TrainConfig:
    return load_config(None, [*SETTINGS, *overrides])


@dataclass
class TinySource:
    """Utterances of one to three words: every label a fixed pattern of five frames, plus noise."""

    seed: int = 0
    utterances: int = 12
    batch_size: int = 3
    poisoned: frozenset[str] = frozenset()
    labels: Labels = field(default_factory=lambda: Labels.characters(WORDS))
    inputs: int = BINS
    words: tuple[str, ...] = WORDS

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(self.utterances, generator=generator(self.seed, "order", epoch)).tolist()
        return self._batches("train", order, start)

    def eval_batches(self, split: str) -> Iterator[Batch]:
        return self._batches(split, list(range(self.utterances)), 0)

    def left_out(self, split: str) -> list[LeftOut]:
        return []

    def segments(self, split: str) -> dict[str, Segment]:
        ids = [f"{split}-{index}" for index in range(self.utterances)]
        return {id: Segment("tiny", 10.0 * i, 10.0 * i + 9, "1", f"speaker-{i % 2}") for i, id in enumerate(ids)}

    def _batches(self, split: str, order: list[int], start: int) -> Iterator[Batch]:
        for first in range(start * self.batch_size, len(order), self.batch_size):
            yield self._batch(split, order[first : first + self.batch_size])

    def _batch(self, split: str, indices: list[int]) -> Batch:
        utterances = [self._utterance(split, index) for index in indices]
        features = [x for x, _ in utterances]
        targets = [self.labels.encode(text) for _, text in utterances]
        return Batch(
            torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
            torch.tensor([len(x) for x in features]),
            torch.tensor([label for target in targets for label in target]),
            torch.tensor([len(target) for target in targets]),
            tuple(f"{split}-{index}" for index in indices),
            tuple(text for _, text in utterances),
        )

    def _utterance(self, split: str, index: int) -> tuple[torch.Tensor, str]:
        random = generator(self.seed, split, index)
        words = torch.randint(len(WORDS), (1 + index % 3,), generator=random).tolist()
        text = " ".join(WORDS[word] for word in words)
        patterns = torch.randn(len(self.labels), BINS, generator=generator(0, "patterns"))
        clean = patterns[self.labels.encode(text)].repeat_interleave(10, dim=0)
        features = clean + 0.1 * torch.randn(clean.shape, generator=random)
        if f"{split}-{index}" in self.poisoned:
            features[0, 0] = torch.nan
        return features, text


def losses(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of the training rows."""
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
