"""Word and character error rates, with their parts, through kaldialign."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kaldialign import edit_distance

from dmao.data.labels import split_words


@dataclass(frozen=True)
class ErrorCount:
    """Edits that turn references into hypotheses; counts add up with `+`."""

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    reference: int = 0  # words or characters in the references

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def percent(self) -> float:
        """Errors per 100 reference tokens. Without any reference token every insertion counts as 100."""
        return 100.0 * self.errors / max(self.reference, 1)

    def __add__(self, other: ErrorCount) -> ErrorCount:
        return ErrorCount(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.reference + other.reference,
        )

    def __str__(self) -> str:
        parts = f"{self.substitutions} sub, {self.insertions} ins, {self.deletions} del"
        return f"{self.percent:.2f} % ({parts} in {self.reference})"


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCount:
    """Count word errors over pairs of texts, aligned with sclite's costs. ValueError if the numbers of texts differ."""
    pairs = [split_words(text) for text in references], [split_words(text) for text in hypotheses]
    return _count(*pairs, sclite=True)


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCount:
    """Count character errors over pairs of texts, blanks between words included. ValueError as in `wer`."""
    return _count([_characters(text) for text in references], [_characters(text) for text in hypotheses])


def _characters(text: str) -> list[str]:
    return list(" ".join(split_words(text)))


def _count(references: Sequence[list[str]], hypotheses: Sequence[list[str]], sclite: bool = False) -> ErrorCount:
    if len(references) != len(hypotheses):
        raise ValueError(f"score: {len(references)} references but {len(hypotheses)} hypotheses")
    return sum(_pairs(references, hypotheses, sclite), ErrorCount())


def _pairs(references: Iterable[list[str]], hypotheses: Iterable[list[str]], sclite: bool) -> Iterable[ErrorCount]:
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        counts = edit_distance(reference, hypothesis, sclite_mode=sclite)
        yield ErrorCount(counts["sub"], counts["ins"], counts["del"], len(reference))
