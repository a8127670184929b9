"""Label sets for CTC: text to ids and back.

Id 0 is the blank, id 1 the word boundary "|"; then come the characters or phones in sorted order. Boundaries stand
between words only. Phones carry no end-of-word variants: the lexicon decoder collapses repeated frames of a word's
last label only where that is the boundary, so both kinds use the boundary.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmao.errors import UserError

BLANK, BOUNDARY = 0, 1
BLANK_TOKEN, BOUNDARY_TOKEN = "<blank>", "|"
KINDS = ("characters", "phonemes")


@dataclass(frozen=True)
class Labels:
    """A label set. Make it with `characters` or `phonemes`, keep it with `state_dict` (plain JSON)."""

    kind: str
    tokens: tuple[str, ...]
    lexicon: Mapping[str, Sequence[str]] = field(default_factory=dict)  # word -> phones; for phonemes only
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)  # token -> id

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind of labels must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.tokens[:2] != (BLANK_TOKEN, BOUNDARY_TOKEN) or len(set(self.tokens)) != len(self.tokens):
            raise UserError(f"labels must begin with {BLANK_TOKEN} and {BOUNDARY_TOKEN} and hold nothing twice")
        object.__setattr__(self, "_ids", {token: id for id, token in enumerate(self.tokens)})

    @classmethod
    def characters(cls, texts: Iterable[str]) -> Labels:
        """Take the characters that occur in `texts` (NFC)."""
        found = {character for text in texts for word in split_words(text) for character in word}
        return cls("characters", (BLANK_TOKEN, BOUNDARY_TOKEN, *sorted(found - {BOUNDARY_TOKEN})))

    @classmethod
    def phonemes(cls, lexicon: Mapping[str, Sequence[str]]) -> Labels:
        """Take the phones that occur in `lexicon` (word -> phones)."""
        found = {phone for phones in lexicon.values() for phone in phones}
        entries = {unicodedata.normalize("NFC", word): tuple(phones) for word, phones in lexicon.items()}
        return cls("phonemes", (BLANK_TOKEN, BOUNDARY_TOKEN, *sorted(found - {BOUNDARY_TOKEN})), entries)

    def __len__(self) -> int:
        """Number of outputs of the model, blank included."""
        return len(self.tokens)

    def spell(self, word: str) -> list[str]:
        """Return the labels of one word, without boundary. UserError names what has no label."""
        if self.kind == "phonemes":
            if word not in self.lexicon:
                raise UserError(f"word {word!r} is not in the lexicon")
            return list(self.lexicon[word])
        for character in word:
            if character not in self._ids or character == BOUNDARY_TOKEN:
                raise UserError(f"character {character!r} in {word!r} is not among the labels")
        return list(word)

    def encode(self, text: str, utterance: str = "") -> list[int]:
        """Return the ids of `text`, words joined by the boundary. UserError names `utterance` and what is unknown."""
        try:
            words = [[self._ids[token] for token in self.spell(word)] for word in split_words(text)]
        except UserError as error:
            raise UserError(f"utterance {utterance}: {error}" if utterance else str(error)) from None
        return [id for position, ids in enumerate(words) for id in ([BOUNDARY] if position else []) + ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` (blanks are skipped). Phones are joined by blanks, words by " | "."""
        words: list[list[str]] = [[]]
        for id in ids:
            if id == BOUNDARY:
                words.append([])
            elif id != BLANK:
                words[-1].append(self.tokens[id])
        if self.kind == "phonemes":
            return " | ".join(" ".join(word) for word in words if word)
        return " ".join("".join(word) for word in words if word)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able data, for the checkpoint."""
        lexicon = {word: list(phones) for word, phones in self.lexicon.items()}
        return {"kind": self.kind, "tokens": list(self.tokens), "lexicon": lexicon}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Labels:
        """Undo `state_dict`. UserError for data that is not a label set."""
        try:
            return cls(state["kind"], tuple(state["tokens"]), {w: tuple(p) for w, p in state["lexicon"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is not a saved label set: {type(error).__name__}: {error}") from error


def split_words(text: str) -> list[str]:
    """Split at white space after Unicode normalisation (NFC: one code point per accented letter)."""
    return unicodedata.normalize("NFC", text).split()
