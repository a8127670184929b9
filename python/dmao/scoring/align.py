"""Alignment of a reference and a hypothesis with sclite's costs (a substitution 4, the others 3), by kaldialign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kaldialign import align as align_words
from kaldialign import edit_distance

from dmao.scoring.normalise import Normaliser, Slot
from dmao.scoring.rates import ErrorCount

_ABSENT = ""  # no word is empty


class Pair(NamedTuple):
    """A word of the reference ("" for an insertion) and of the hypothesis ("" for a deletion)."""

    reference: str
    hypothesis: str
    excused: bool = False  # a deletion of a word that may be missing: correct


@dataclass(frozen=True)
class Alignment:
    """The pairs of one utterance."""

    pairs: tuple[Pair, ...]

    @property
    def count(self) -> ErrorCount:
        """The errors."""
        wrong = [pair for pair in self.pairs if pair.reference != pair.hypothesis and not pair.excused]
        insertions = sum(not pair.reference for pair in wrong)
        deletions = sum(not pair.hypothesis for pair in wrong)
        reference = sum(bool(pair.reference) for pair in self.pairs)
        return ErrorCount(len(wrong) - insertions - deletions, insertions, deletions, reference)


def align(reference: str, hypothesis: str, normaliser: Normaliser = Normaliser()) -> Alignment:  # noqa: B008 - frozen
    """Align two texts, as `normaliser` sees them.

    Of alternatives those are taken that make the fewest errors; one place after the other, so that where several stand
    side by side better ones might be missed.
    """
    sides = [normaliser.slots(reference), normaliser.slots(hypothesis)]
    chosen = _choose(sides[0], sides[1])
    words, optional = _flat(sides[0], chosen[0])
    heard, _ = _flat(sides[1], chosen[1])
    pairs, place = [], 0
    for expected, found in align_words(words, heard, _ABSENT, sclite_mode=True):
        pairs.append(Pair(expected, found, bool(expected) and not found and optional[place]))
        place += bool(expected)
    return Alignment(tuple(pairs))


def _choose(reference: Sequence[Slot], hypothesis: Sequence[Slot]) -> list[list[int]]:
    """Which alternative of each slot, for both sides."""
    sides = (reference, hypothesis)
    chosen = [[0] * len(side) for side in sides]
    for number, side in enumerate(sides):
        for place, slot in enumerate(side):
            if len(slot.alternatives) == 1:
                continue
            errors = []
            for alternative in range(len(slot.alternatives)):
                chosen[number][place] = alternative
                texts = [_flat(s, c)[0] for s, c in zip(sides, chosen, strict=True)]
                errors.append(edit_distance(*texts)["total"])
            chosen[number][place] = errors.index(min(errors))
    return chosen


def _flat(slots: Sequence[Slot], chosen: Sequence[int]) -> tuple[list[str], list[bool]]:
    """The words, and which of them may be missing."""
    words: list[str] = []
    optional: list[bool] = []
    for slot, alternative in zip(slots, chosen, strict=True):
        phrase = slot.alternatives[alternative]
        words += phrase
        optional += [slot.optional] * len(phrase)
    return words, optional
