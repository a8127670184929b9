"""Prefix beam search over labels, by flashlight-text: the best label sequence, summed over its paths."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dmao.data.labels import BLANK, Labels
from dmao.decode.emissions import IMPOSSIBLE, TOKENS, as_frames, as_log_prior
from dmao.decode.greedy import collapse
from dmao.decode.lexicon import flashlight


class PrefixDecoder:
    """Finds the most probable labels; any sequence is allowed.

    Args:
        labels: the label set of the model.
        beam: hypotheses kept per frame.
        prior, prior_scale: see `LexiconDecoder`.

    Raises:
        UserError: flashlight-text is not installed.
    """

    def __init__(
        self, labels: Labels, *, beam: int = 100, prior: np.ndarray | None = None, prior_scale: float = 0.0
    ) -> None:
        fl = flashlight()
        self._labels = labels
        self._offset = prior_scale * as_log_prior(prior, labels)
        self._model = fl.ZeroLM()
        options = fl.LexiconFreeDecoderOptions(
            beam_size=beam,
            beam_size_token=min(len(labels), TOKENS),
            beam_threshold=50.0,
            lm_weight=0.0,
            sil_score=0.0,
            log_add=True,
            criterion_type=fl.CriterionType.CTC,
        )
        # What flashlight takes for silence is a label of its own that never comes.
        self._decoder = fl.LexiconFreeDecoder(options, self._model, len(labels), BLANK, [])

    def decode(self, log_probs: Tensor | np.ndarray) -> str:
        """The text of one utterance's labels. Arguments and errors as of `LexiconDecoder.decode`."""
        frames = as_frames(log_probs, self._labels) - self._offset
        if len(frames) == 0:
            return ""
        frames = np.pad(frames, ((0, 0), (0, 1)), constant_values=IMPOSSIBLE)
        (best, *_) = self._decoder.decode(frames.ctypes.data, *frames.shape)
        silence = len(self._labels)
        return self._labels.decode(collapse(BLANK if token in (-1, silence) else token for token in best.tokens))
