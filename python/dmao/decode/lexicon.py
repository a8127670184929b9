"""Beam search over the words of a lexicon, with or without a word n-gram model, by flashlight-text."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmao.data.labels import BLANK, Labels, Unspellable
from dmao.decode.arpa import check_counts
from dmao.decode.emissions import IMPOSSIBLE, TOKENS, Scales, as_frames, as_log_prior
from dmao.errors import UserError, first_line

_log = logging.getLogger(__name__)
_UNKNOWN = "<unk>"
_END = -30.0
_SAME_SPELLING = 6  # flashlight keeps no more words than that with the same labels
# flashlight orders equal scores by addresses. A word that ends in a label and one that goes on in its twin would be
# equal without this.
_WORD = 1e-6


class LexiconDecoder:
    """Finds the most probable sequence of words of a fixed vocabulary.

    flashlight merges repeated frames of a label inside a word, but of a word's last label only where that is what it
    calls silence. So, where labels have a boundary, every word ends in it, it is what flashlight calls silence, and a
    frame with a sure boundary is appended to every utterance. Where they have none, a word may end in its last label
    as it is, or in a twin of it for the last of several frames: every path then belongs to just one spelling.

    Equal frames give equal words. Of words with the same pronunciation that are equally likely the first one in
    alphabetical order is taken: without a model always.

    Args:
        labels: the label set of the model.
        words: the vocabulary. A word that the labels cannot spell is left out, with a warning.
        arpa: word n-gram model (see `write_arpa`); None gives all words the same probability.
        beam: hypotheses kept per frame.
        prior: [V], probabilities of the labels, of which `scales.prior` is subtracted; None: nothing is.
        scales: see `Scales`; `lm` and `prior` have no effect without `arpa` and `prior`.

    Raises:
        UserError: flashlight-text is not installed, no word can be spelled, `arpa` cannot be read or knows no word.
    """

    def __init__(
        self,
        labels: Labels,
        words: Iterable[str],
        *,
        arpa: str | Path | None = None,
        beam: int = 100,
        prior: np.ndarray | None = None,
        scales: Scales = Scales(),  # noqa: B008 - it is frozen
    ) -> None:
        self._fl = flashlight()
        self._labels = labels
        self._log_prior = as_log_prior(prior, labels)
        self._beam = beam
        spellings = _spell(labels, sorted(set(words) - {_UNKNOWN}))
        twins = sorted({ids[-1] for several in spellings.values() for ids in several})
        self._twins = np.array([] if labels.boundary is not None else twins, np.int64)
        self._silence = len(labels) + len(self._twins) if labels.boundary is None else labels.boundary
        self._columns = max(self._silence + 1, len(labels))

        from flashlight.lib.text.dictionary import create_word_dict

        self._dictionary = create_word_dict({_UNKNOWN: [], **{word: [] for word in spellings}})
        self._model = self._fl.ZeroLM() if arpa is None else _read_arpa(arpa, self._dictionary)
        self._with_model = arpa is not None
        self._trie = self._fl.Trie(self._columns, self._silence)
        if not self._fill(spellings):
            raise UserError(
                f"language model {arpa} knows none of the words to be found, {_some(list(spellings))}: are its words "
                "written otherwise, as in capitals?"
            )
        self._trie.smear(self._fl.SmearingMode.MAX)
        self.rescale(scales)

    def rescale(self, scales: Scales) -> None:
        """Decode with these scales from now on; vocabulary and language model stay."""
        self._offset = scales.prior * self._log_prior
        options = self._fl.LexiconDecoderOptions(
            beam_size=self._beam,
            beam_size_token=min(self._columns, TOKENS),
            beam_threshold=50.0,
            lm_weight=scales.lm * math.log(10) if self._with_model else 0.0,  # ARPA has decimal logarithms
            word_score=scales.word + _WORD,
            unk_score=float("-inf"),
            sil_score=0.0,
            log_add=True,
            criterion_type=self._fl.CriterionType.CTC,
        )
        unknown = self._dictionary.get_index(_UNKNOWN)
        self._decoder = self._fl.LexiconDecoder(
            options, self._trie, self._model, self._silence, BLANK, unknown, [], False
        )

    def decode(self, log_probs: Tensor | np.ndarray) -> str:
        """Return the words of one utterance, joined by blanks; "" where no word fits.

        Args:
            log_probs: [T, V] log-probabilities; cut off the padding before. T may be 0.

        Raises:
            ValueError: if `log_probs` is not [T, V] or holds NaN.
        """
        return " ".join(word for word, _, _ in self.decode_words(log_probs))

    def decode_words(self, log_probs: Tensor | np.ndarray) -> list[tuple[str, int, int]]:
        """The words with the frames [begin, end) that they take on the best path. Arguments, errors: see `decode`."""
        frames = as_frames(log_probs, self._labels)
        if len(frames) == 0:
            return []
        count = len(frames)
        frames = self._with_end(frames) if self._labels.boundary is not None else self._with_twins(frames)
        results = self._decoder.decode(frames.ctypes.data, *frames.shape)
        return self._timed(self._best(results), count) if results else []

    def _best(self, results: list[Any]) -> Any:
        """The first one in alphabetical order of those that are as good as the best one."""
        equal = [result for result in results if result.score >= results[0].score - _WORD / 2]
        return min(equal, key=lambda result: [self._dictionary.get_entry(word) for word in result.words if word >= 0])

    def _timed(self, result: Any, count: int) -> list[tuple[str, int, int]]:
        """A word ends where flashlight emits it, and begins with the first label since the one before."""
        found, begin = [], None
        # Before the first frame and behind the last one flashlight has an entry of its own.
        for frame, (token, word) in enumerate(zip(result.tokens[1:], result.words[1:], strict=True)):
            if begin is None and token not in (BLANK, self._silence):
                begin = min(frame, count - 1)
            if word >= 0:
                end = min(frame + 1, count)
                found.append((self._dictionary.get_entry(word), end - 1 if begin is None else begin, end))
                begin = None
        return found

    def _fill(self, spellings: dict[str, list[list[int]]]) -> bool:
        """False where the model says of every word what it says of an unknown one: then all of them are."""
        start = self._model.start(False)
        _, unknown = self._model.score(start, self._dictionary.get_index(_UNKNOWN))
        knows = not self._with_model
        twin = {label: len(self._labels) + position for position, label in enumerate(self._twins.tolist())}
        alike: Counter[tuple[int, ...]] = Counter()
        most = _SAME_SPELLING if self._with_model else 1
        crowded = []
        for word, several in spellings.items():
            index = self._dictionary.get_index(word)
            _, score = self._model.score(start, index)
            knows = knows or score != unknown
            for ids in several:
                alike[tuple(ids)] += 1
                if alike[tuple(ids)] > most:
                    crowded.append(word)
                    continue
                ends = [[self._labels.boundary]] if self._labels.boundary is not None else [[], [twin[ids[-1]]]]
                for end in ends:
                    self._trie.insert([*ids, *end], index, score)
        if crowded:
            _log.warning(
                "decode: %d pronunciations are those of %d other words%s and are left out: %s",
                len(crowded),
                most,
                "" if self._with_model else ", which only a language model tells apart,",
                _some(crowded),
            )
        return knows

    def _with_end(self, frames: np.ndarray) -> np.ndarray:
        end = np.full((1, len(self._labels)), _END, np.float32)
        end[0, self._labels.boundary] = 0.0
        return np.concatenate([frames - self._offset, end])

    def _with_twins(self, frames: np.ndarray) -> np.ndarray:
        """A twin is the last of several frames of a label: not where a blank was more likely in the frame before,
        which would part them, nor where the label is the best one in the frame behind, as one more of them.
        """
        last = np.zeros((len(frames), len(self._twins)), bool)
        last[1:] = frames[:-1, self._twins] >= frames[:-1, [BLANK]]
        last[:-1] &= frames[1:].argmax(1)[:, None] != self._twins
        scored = frames - self._offset
        twins = np.where(last, scored[:, self._twins], np.float32(IMPOSSIBLE))
        silence = np.full((len(frames), 1), IMPOSSIBLE, np.float32)
        return np.ascontiguousarray(np.concatenate([scored, twins, silence], 1))


def flashlight() -> Any:
    """flashlight-text's decoders. UserError where it is not installed."""
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise UserError(
            "beam search needs flashlight-text: pip install 'dmao-kernels[recipes]' (there is none for Python 3.13)"
        ) from error
    return decoder


def _spell(labels: Labels, words: list[str]) -> dict[str, list[list[int]]]:
    spellings, without = {}, []
    for word in words:
        try:
            spellings[word] = labels.spellings(word)
        except Unspellable:
            without.append(word)
    if not spellings:
        raise UserError(f"lexicon decoding needs at least one word that the labels can spell, got {_some(without)}")
    if without:
        _log.warning("decode: %d words that the labels cannot spell are left out: %s", len(without), _some(without))
    return spellings


def _some(words: list[str]) -> str:
    return (", ".join(words[:5]) or "none") + (", ..." if len(words) > 5 else "")


def _read_arpa(path: str | Path, dictionary: Any) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM

    if not Path(path).is_file():
        raise UserError(f"language model {path} does not exist")
    try:
        check_counts(Path(path))
        return KenLM(str(path), dictionary)
    except Exception as error:  # KenLM's own C++ exceptions
        raise UserError(f"cannot read language model {path}: {first_line(error)}") from error
