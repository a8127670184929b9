"""Alignment of a reference and a hypothesis with sclite's costs.

A substitution costs 4, an insertion or a deletion 3, of a word that may be missing 2. kaldialign aligns plain texts;
those with alternatives or optional words, and all with NIST's mapping, are networks of words, as in sclite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from kaldialign import align as align_words

from dmao.scoring.normalise import Normaliser, Slot
from dmao.scoring.rates import ErrorCount

_ABSENT = ""  # no word is empty
_SUBSTITUTION, _MISSING, _OPTIONAL, _NOTHING = 4000, 3000, 2000, 1


class Pair(NamedTuple):
    """A word of the reference ("" for an insertion) and of the hypothesis ("" for a deletion)."""

    reference: str
    hypothesis: str
    excused: bool = False  # correct all the same: a word that may be missing, a fragment of the other


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
    """Align two texts, as `normaliser` sees them; of alternatives those are taken that cost least."""
    slots = normaliser.reference(reference), normaliser.hypothesis(hypothesis)
    if not normaliser.official and all(len(slot.alternatives) == 1 and not slot.optional for slot in chain(*slots)):
        words = ([word for slot in side for word in slot.alternatives[0]] for side in slots)
        return Alignment(tuple(Pair(*pair) for pair in align_words(*words, _ABSENT, sclite_mode=True)))
    expected, heard = map(_network, slots)
    return Alignment(tuple(_align_networks(expected, heard, normaliser.official)))


class _Arc(NamedTuple):
    """A word, or nothing, that leads on from a node; and what it costs to have it on one side alone."""

    start: int
    word: str
    optional: bool
    cost: int


def _network(slots: Sequence[Slot]) -> list[list[_Arc]]:
    """The arcs that end in each node, in an order in which they lead forward; the last node is the text's end."""
    ends: list[list[_Arc]] = [[]]
    for slot in slots:
        begin, last = len(ends) - 1, []
        for phrase in slot.alternatives:
            place = begin
            for word in phrase[:-1]:
                ends.append([_arc(place, word, slot.optional)])
                place = len(ends) - 1
            last.append(_arc(place, phrase[-1] if phrase else _ABSENT, slot.optional))
        ends.append(last)
    return ends


def _arc(start: int, word: str, optional: bool) -> _Arc:
    return _Arc(start, word, optional, _NOTHING if word == _ABSENT else _OPTIONAL if optional else _MISSING)


def _align_networks(reference: list[list[_Arc]], hypothesis: list[list[_Arc]], fragments: bool) -> list[Pair]:
    """The pairs of the cheapest way through both; of equal ones, as in sclite, that with substitutions."""
    nothing = _Arc(0, _ABSENT, False, 0)
    best: dict[tuple[int, int], tuple[int, int, int, _Arc, _Arc]] = {(0, 0): (0, 0, 0, nothing, nothing)}
    for r, expected in enumerate(reference):
        for h, heard in enumerate(hypothesis):
            steps = []
            for a in expected:
                for b in heard:
                    if a.word and b.word:
                        cost = 0 if _same(a.word, b.word, fragments) else _SUBSTITUTION
                        steps.append((best[a.start, b.start][0] + cost, a.start, b.start, a, b))
            steps += [(best[r, b.start][0] + b.cost, r, b.start, nothing, b) for b in heard]
            steps += [(best[a.start, h][0] + a.cost, a.start, h, a, nothing) for a in expected]
            if steps:
                best[r, h] = min(steps, key=_cost)
    pairs = []
    r, h = len(reference) - 1, len(hypothesis) - 1
    while (r, h) != (0, 0):
        _, r, h, a, b = best[r, h]
        if a.word or b.word:
            excused = _same(a.word, b.word, fragments) if a.word and b.word else a.optional
            pairs.append(Pair(a.word, b.word, excused and a.word != b.word))
    return pairs[::-1]


def _cost(step: tuple[int, int, int, _Arc, _Arc]) -> int:
    return step[0]


def _same(reference: str, hypothesis: str, fragments: bool) -> bool:
    """As in sclite a reference that is a fragment decides, and a hypothesis only where it is none."""
    if reference == hypothesis or not fragments:
        return reference == hypothesis
    if _is_fragment(reference):
        return _begins_or_ends(reference, hypothesis)
    return _is_fragment(hypothesis) and _begins_or_ends(hypothesis, reference)


def _is_fragment(word: str) -> bool:
    return len(word) > 1 and "-" in (word[0], word[-1])


def _begins_or_ends(fragment: str, word: str) -> bool:
    """Whether "wh-" is the beginning of a word, or "-thing" its end."""
    return word.endswith(fragment[1:]) if fragment[0] == "-" else word.startswith(fragment[:-1])
