"""The prior of labels: the mean of a model's posteriors over data (Manohar et al., 2015; arXiv 2506.13180)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_LEAST = 1e-12  # of a probability: no label is worth infinitely much


def mean_posterior(outputs: Iterable[np.ndarray]) -> np.ndarray:
    """[V] float64: the mean over all frames of exp(log-probabilities), each of `outputs` [T, V].

    Raises ValueError where there is no frame.
    """
    frames, total = 0, np.zeros(1)
    for log_probs in outputs:
        frames += len(log_probs)
        total = total + np.exp(log_probs.astype(np.float64)).sum(0)
    if not frames:
        raise ValueError("prior: there is no frame to take the mean of")
    prior = np.maximum(total / frames, _LEAST)
    return prior / prior.sum()
