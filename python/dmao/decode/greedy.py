"""The best label per frame, repeats merged, blanks dropped."""

from __future__ import annotations

import itertools

import numpy as np
from torch import Tensor

from dmao.data.labels import Labels


def greedy(log_probs: Tensor | np.ndarray, labels: Labels) -> str:
    """Return the text of the best CTC path of one utterance.

    Args:
        log_probs: [T, V] log-probabilities (or logits); cut off the padding before. T may be 0.
        labels: label set of size V.

    Raises:
        ValueError: if `log_probs` is not [T, V] or holds NaN.
    """
    return labels.decode(label for label, _ in itertools.groupby(as_frames(log_probs, labels).argmax(axis=1).tolist()))


def as_frames(log_probs: Tensor | np.ndarray, labels: Labels) -> np.ndarray:
    """Return `log_probs` as contiguous fp32 [T, V] on the host; ValueError for another shape or NaN."""
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.detach().float().cpu().numpy()
    if log_probs.ndim != 2 or log_probs.shape[1] != len(labels):
        raise ValueError(f"decode: log_probs must be [T, {len(labels)}], got {list(log_probs.shape)}")
    if np.isnan(log_probs).any():
        raise ValueError("decode: log_probs holds NaN")
    return np.ascontiguousarray(log_probs, dtype=np.float32)
