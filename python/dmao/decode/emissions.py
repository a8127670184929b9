"""What a search over labels scores a frame with: log-probabilities, less what is known of labels without hearing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dmao.data.labels import Labels

IMPOSSIBLE = -1e4
TOKENS = 128  # the most probable ones of a frame that a search looks at


@dataclass(frozen=True)
class Scales:
    """How a search weighs its parts: log p(label | frame) - prior * log p(label) + lm * log p(word | history) + word.

    lm, prior: factors of natural logarithms; word: added per word. The defaults are the published ones (arXiv
    2506.13180: "about").
    """

    lm: float = 0.9
    prior: float = 0.3
    word: float = 0.0

    def __str__(self) -> str:
        return ", ".join(self.described().values())

    def described(self) -> dict[str, str]:
        """Each in words, by the name of its option."""
        return {
            "lm_scale": f"LM scale {self.lm:g}",
            "prior_scale": f"prior scale {self.prior:g}",
            "word_score": f"word score {self.word:g}",
        }


def as_frames(log_probs: Tensor | np.ndarray, labels: Labels) -> np.ndarray:
    """`log_probs` as contiguous fp32 [T, V] on the host; ValueError for another shape or NaN."""
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.detach().float().cpu().numpy()
    if log_probs.ndim != 2 or log_probs.shape[1] != len(labels):
        raise ValueError(f"decode: log_probs must be [T, {len(labels)}], got {list(log_probs.shape)}")
    if np.isnan(log_probs).any():
        raise ValueError("decode: log_probs holds NaN")
    return np.ascontiguousarray(log_probs, dtype=np.float32)


def as_log_prior(prior: np.ndarray | None, labels: Labels) -> np.ndarray:
    """log of `prior` [V], probabilities of the labels; zeros without one. ValueError for another shape or value."""
    if prior is None:
        return np.zeros(len(labels), np.float32)
    prior = np.asarray(prior, np.float64)
    if prior.shape != (len(labels),) or not ((prior > 0) & np.isfinite(prior)).all():
        raise ValueError(f"decode: prior must be positive [{len(labels)}], got {list(prior.shape)}")
    return np.log(prior).astype(np.float32)
