"""The best label per frame, repeats merged, blanks dropped."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from dmao.data.labels import BLANK, Labels
from dmao.decode.emissions import as_frames


def greedy(log_probs: Tensor | np.ndarray, labels: Labels) -> str:
    """Return the text of the best CTC path of one utterance.

    Args:
        log_probs: [T, V] log-probabilities (or logits); cut off the padding before. T may be 0.
        labels: label set of size V.

    Raises:
        ValueError: if `log_probs` is not [T, V] or holds NaN.
    """
    return labels.decode(collapse(as_frames(log_probs, labels).argmax(axis=1).tolist()))


def collapse(path: Iterable[int]) -> list[int]:
    """The labels of a CTC path, one id per frame."""
    return [label for label, _ in itertools.groupby(path) if label != BLANK]
