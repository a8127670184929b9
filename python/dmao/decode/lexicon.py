"""Beam search over the words of a lexicon, by flashlight-text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmao.data.labels import BLANK, BOUNDARY, BOUNDARY_TOKEN, Labels
from dmao.decode.greedy import as_frames
from dmao.errors import UserError, first_line

_UNKNOWN = "<unk>"
_IMPOSSIBLE = -30.0


class LexiconDecoder:
    """Finds the most probable sequence of words of a fixed vocabulary.

    Every word is spelled in labels and ends in the boundary: flashlight merges repeated frames at the end of a
    word only where these are boundaries. Targets do not end in one, so a frame with a sure boundary is appended
    to every utterance.

    Args:
        labels: the label set of the model.
        words: the vocabulary.
        arpa: word n-gram model (see `write_arpa`); None gives all words the same probability.
        beam: hypotheses kept per frame.
        lm_weight: factor of the log10 probabilities of `arpa`.
        word_score: added per word.

    Raises:
        UserError: flashlight-text is not installed, the vocabulary is empty or a word cannot be spelled, `arpa` cannot
            be read.
    """

    def __init__(
        self,
        labels: Labels,
        words: Iterable[str],
        *,
        arpa: str | Path | None = None,
        beam: int = 100,
        lm_weight: float = 1.0,
        word_score: float = 0.0,
    ) -> None:
        try:
            from flashlight.lib.text import decoder as fl
            from flashlight.lib.text.dictionary import Dictionary, create_word_dict
        except ImportError as error:
            raise UserError(
                "lexicon decoding needs flashlight-text: pip install 'dmao-kernels[recipes]' (or flashlight-text)"
            ) from error
        self._labels = labels
        vocabulary = sorted(set(words) - {_UNKNOWN})
        if not vocabulary:
            raise UserError("lexicon decoding needs at least one word")
        spellings = {word: [[*labels.spell(word), BOUNDARY_TOKEN]] for word in vocabulary}
        dictionary = create_word_dict({_UNKNOWN: [], **spellings})  # flashlight looks <unk> up
        tokens = Dictionary(list(labels.tokens))
        model = fl.ZeroLM() if arpa is None else _read_arpa(arpa, dictionary)
        trie = fl.Trie(len(labels), BOUNDARY)
        start = model.start(False)
        for word, (spelling,) in spellings.items():
            index = dictionary.get_index(word)
            _, score = model.score(start, index)
            trie.insert([tokens.get_index(token) for token in spelling], index, score)
        trie.smear(fl.SmearingMode.MAX)
        options = fl.LexiconDecoderOptions(
            beam_size=beam,
            beam_size_token=min(30, len(labels)),
            beam_threshold=50.0,
            lm_weight=lm_weight if arpa else 0.0,
            word_score=word_score,
            unk_score=float("-inf"),
            sil_score=0.0,
            log_add=True,
            criterion_type=fl.CriterionType.CTC,
        )
        unknown = dictionary.get_index(_UNKNOWN)
        self._decoder = fl.LexiconDecoder(options, trie, model, BOUNDARY, BLANK, unknown, [], False)
        self._dictionary = dictionary
        self._keep = (trie, model)  # the decoder refers to them

    def decode(self, log_probs: Tensor | np.ndarray) -> str:
        """Return the words of one utterance, joined by blanks; "" where no word fits.

        Args:
            log_probs: [T, V] log-probabilities; cut off the padding before. T may be 0.

        Raises:
            ValueError: if `log_probs` is not [T, V] or holds NaN.
        """
        frames = as_frames(log_probs, self._labels)
        if len(frames) == 0:
            return ""
        end = np.full((1, len(self._labels)), _IMPOSSIBLE, np.float32)
        end[0, BOUNDARY] = 0.0
        frames = np.concatenate([frames, end])
        results = self._decoder.decode(frames.ctypes.data, *frames.shape)
        words = results[0].words if results else []
        return " ".join(self._dictionary.get_entry(word) for word in words if word >= 0)


def _read_arpa(path: str | Path, dictionary: Any) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM

    if not Path(path).is_file():
        raise UserError(f"language model {path} does not exist")
    try:
        return KenLM(str(path), dictionary)
    except Exception as error:  # KenLM's own C++ exceptions
        raise UserError(f"cannot read language model {path}: {first_line(error)}") from error
