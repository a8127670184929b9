"""Padded batches: a pure function of dataset, seconds, seed and epoch, read from any position on.

lhotse's bucketing sampler groups utterances of similar length; this module reads their features, normalises and pads.
On a CPU that costs far less than a training step; for a GPU, worker processes read ahead (`dmao bench-loader`).
"""

from __future__ import annotations

import itertools
import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from lhotse.dataset import DynamicBucketingSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dmao.data.corpus import usable_cores
from dmao.data.features import BINS, load_features
from dmao.data.labels import Labels, Unspellable
from dmao.data.manifests import MonoCut
from dmao.errors import UserError

_log = logging.getLogger(__name__)

_NAMED_AT_MOST = 3


@dataclass(frozen=True)
class Batch:
    """B utterances, padded with zeros."""

    features: Tensor  # fp32 [B, T, 80], normalised per utterance
    feature_lengths: Tensor  # int64 [B]
    targets: Tensor  # int64 [sum of target_lengths], one utterance after the other
    target_lengths: Tensor  # int64 [B]
    ids: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """An utterance that cannot be trained. A fair score counts its words as deletions."""

    id: str
    text: str
    reason: str


class SpeechDataset:
    """Utterances with features and encoded targets; those that CTC cannot align are left out, with one line about it.

    Args:
        cuts: cuts with features and one supervision each, e.g. `corpus.cuts("train")`.
        labels: how texts become targets.
        subsampling: feature frames per output frame of the model.
        name: what messages call this dataset.
        unspellable: what becomes of an utterance that the labels cannot spell: an error ("refuse"), "leave out", or
            "keep" it without targets, to be decoded.

    Attributes:
        cuts: id -> cut, in the order of the manifest.
        targets: id -> label ids.
        left_out: utterances shorter than one output frame, or with more labels (one blank between equal neighbours
            included) than output frames.

    Raises:
        UserError: if an utterance has no features, no text or an unknown character, or if no utterance remains.
    """

    def __init__(
        self,
        cuts: Iterable[MonoCut],
        labels: Labels,
        *,
        subsampling: int = 4,
        name: str = "data",
        unspellable: Literal["refuse", "leave out", "keep"] = "refuse",
    ) -> None:
        self.labels = labels
        self.name = name
        self.cuts: dict[str, MonoCut] = {}
        self.targets: dict[str, list[int]] = {}
        self.left_out: list[LeftOut] = []
        total = 0
        for cut in cuts:
            total += 1
            if not cut.has_features or cut.num_features != BINS:
                raise UserError(
                    f"utterance {cut.id} has no features with {BINS} bins: delete ROOT/corpus.json and prepare again"
                )
            try:
                target = labels.encode(text_of(cut), cut.id)
            except Unspellable as error:
                if unspellable == "refuse":
                    raise
                if unspellable == "leave out":
                    self.left_out.append(LeftOut(cut.id, text_of(cut), str(error)))
                    continue
                target = []
            if reason := _why_not(cut.num_frames, target, subsampling):
                self.left_out.append(LeftOut(cut.id, text_of(cut), reason))
            else:
                self.cuts[cut.id], self.targets[cut.id] = cut, target
        if not self.cuts:
            why = f" ({self.left_out[0].id}: {self.left_out[0].reason})" if self.left_out else ""
            raise UserError(f"{name}: none of {total} utterances can be used{why}")
        if self.left_out:
            _log.warning("%s", self._summary(total))

    def _summary(self, total: int) -> str:
        named = ", ".join(f"{u.id} ({u.reason})" for u in self.left_out[:_NAMED_AT_MOST])
        more = ", ..." if len(self.left_out) > _NAMED_AT_MOST else ""
        return f"{self.name}: {len(self.left_out)} of {total} utterances left out: {named}{more}"

    def __len__(self) -> int:
        return len(self.cuts)

    @property
    def seconds(self) -> float:
        """Speech in the dataset."""
        return sum(cut.duration for cut in self.cuts.values())

    @property
    def texts(self) -> Mapping[str, str]:
        """id -> reference text."""
        return {id: text_of(cut) for id, cut in self.cuts.items()}

    def batch(self, ids: Iterable[str]) -> Batch:
        """Read, normalise and pad the utterances `ids`."""
        ids = tuple(ids)
        features = [torch.from_numpy(load_features(self.cuts[id])) for id in ids]
        targets = [self.targets[id] for id in ids]
        return Batch(
            features=torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
            feature_lengths=torch.tensor([len(x) for x in features]),
            targets=torch.tensor([id for target in targets for id in target], dtype=torch.int64),
            target_lengths=torch.tensor([len(target) for target in targets]),
            ids=ids,
            texts=tuple(text_of(self.cuts[id]) for id in ids),
        )


def epoch_plan(
    dataset: SpeechDataset,
    *,
    seconds: float,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    shortest_first: bool = False,
    buckets: int = 10,
) -> list[tuple[str, ...]]:
    """Decide the batches of one epoch: ids of utterances, every utterance once. Reads no features.

    A batch aims at `seconds` of audio, padding included: it is full when one more utterance, as long as its longest,
    would not fit; a longer one that comes last may overshoot. The same arguments give the same plan; without `shuffle`
    the order does not depend on `seed` and `epoch`. With `shortest_first` the batches are the same, and come by the
    length of their longest utterance (SortaGrad, arXiv 1512.02595, section 3.3).
    """
    if not seconds > 0:
        raise UserError(f"a batch must hold more than 0 seconds, got {seconds}")
    rng = random.Random(f"{seed}/{epoch}" if shuffle else "in order")
    cuts = list(dataset.cuts.values())  # not a CutSet: lhotse warns of eager ones
    sampler = DynamicBucketingSampler(
        cuts,
        max_duration=seconds,
        duration_bins=_bucket_borders(cuts, seconds, buckets),
        shuffle=shuffle,
        buffer_size=max(len(cuts), 20_000),  # shuffle over the whole set
        sync_buckets=True,  # without, lhotse 1.33 ends the epoch at the first empty bucket and loses utterances
        seed=rng.getrandbits(31),
        world_size=1,
        rank=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "We have exceeded the max_duration constraint")
        plan = [tuple(cut.id for cut in batch) for batch in sampler]
    if shuffle:
        rng.shuffle(plan)  # lhotse visits the buckets in the same order every time
    if shortest_first:
        plan.sort(key=lambda ids: max(dataset.cuts[id].duration for id in ids))
    return plan


def _bucket_borders(cuts: list[MonoCut], seconds: float, buckets: int) -> list[float]:
    """Durations that part the cuts in groups of equal count, each worth two batches where there are enough cuts."""
    durations = [cut.duration for cut in cuts]
    count = max(2, min(buckets, int(sum(durations) / (2 * seconds))))
    return np.quantile(durations, np.arange(1, count) / count).tolist()


def batches(
    dataset: SpeechDataset,
    *,
    seconds: float,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    shuffle: bool = True,
    shortest_first: bool = False,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of one epoch from batch `start` on; those before it cost nothing.

    See `epoch_plan` for the other arguments and for the number of batches. `workers` processes read ahead; the batches
    are the same.

    Raises:
        UserError: for a bad argument or features that cannot be read.
    """
    plan = epoch_plan(dataset, seconds=seconds, seed=seed, epoch=epoch, shuffle=shuffle, shortest_first=shortest_first)
    if not 0 <= start <= len(plan):
        raise UserError(f"start must lie between 0 and {len(plan)}, the number of batches, got {start}")
    if workers == 0:
        yield from map(dataset.batch, plan[start:])
        return
    if workers > (cores := usable_cores()):
        _tell_more_workers(workers, cores)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the same, at length and in every epoch
        planned = _Planned(dataset, plan[start:])
        ahead = iter(DataLoader(planned, batch_size=None, num_workers=workers, prefetch_factor=4))
    for batch in ahead:
        if isinstance(batch, UserError):
            raise batch
        yield batch


@cache
def _tell_more_workers(workers: int, cores: int) -> None:
    """Once in a process."""
    _log.warning("data.workers is %d, more processes than cores here (%d): fewer may be faster", workers, cores)


@dataclass(frozen=True)
class _Planned(Dataset[Batch | UserError]):
    """The batches of a plan by their number, for PyTorch's loader; an error of ours comes as it is, not as its text."""

    dataset: SpeechDataset
    plan: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self.dataset.batch(self.plan[number])
        except UserError as error:
            return error


def text_of(cut: MonoCut) -> str:
    """Return the transcript of a cut. UserError if it has none."""
    if len(cut.supervisions) != 1 or not isinstance(cut.supervisions[0].text, str):
        raise UserError(f"utterance {cut.id} has no transcript")
    return cut.supervisions[0].text


def _why_not(frames: int, target: list[int], subsampling: int) -> str | None:
    outputs = frames // subsampling
    needed = len(target) + sum(a == b for a, b in itertools.pairwise(target))
    if outputs < 1:
        return f"{frames} frames, fewer than {subsampling}"
    if outputs < needed:
        return f"labels need {needed} output frames, got {outputs}"
    return None
