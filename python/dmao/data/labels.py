"""Label sets for CTC: text to ids and back.

Id 0 is always the blank. A label set is made from a corpus once, kept in checkpoints with `state_dict` (plain JSON),
and read back with `Labels.from_state_dict`; afterwards it needs the corpus no more.

    characters  1 is the boundary "|" between words, then characters in sorted order
    phonemes    every phone of the lexicon twice, inside and at the end of a word ("AH", "AH#"); no boundary
    bpe         sentencepiece's pieces, in `dmao.data.pieces`; no boundary
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dmao.errors import UserError

BLANK, BOUNDARY = 0, 1
BLANK_TOKEN, BOUNDARY_TOKEN, END_OF_WORD = "<blank>", "|", "#"
KINDS = ("characters", "phonemes", "bpe")
# A lexicon gives a word one pronunciation (phones) or several (the first one is trained on).
Entry = Sequence[str] | Sequence[Sequence[str]]


class Unspellable(UserError):
    """A word has no spelling in the labels."""


class Labels(ABC):
    """What all label sets can do. Make one with `characters`, `phonemes` or `bpe`."""

    kind: ClassVar[str]
    tokens: tuple[str, ...]
    boundary: ClassVar[int | None] = None  # the id between words, where there is one

    def __len__(self) -> int:
        """Number of outputs of the model, blank included."""
        return len(self.tokens)

    @abstractmethod
    def spellings(self, word: str) -> list[list[int]]:
        """The ids of a word, without boundary, one list for each pronunciation. Raises Unspellable."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, blanks skipped; of phonemes, the phones, with " | " behind each word but the last."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All of it as JSON-able data, for the checkpoint."""

    @property
    def words(self) -> tuple[str, ...] | None:
        """The words that these labels know, in order; None where they spell any word."""
        return None

    def encode(self, text: str, utterance: str = "") -> list[int]:
        """The ids of `text`: of each word its first spelling, and the boundary between words where there is one.

        Raises Unspellable, which names `utterance`.
        """
        try:
            words = [self.spellings(word)[0] for word in split_words(text)]
        except Unspellable as error:
            raise Unspellable(f"utterance {utterance}: {error}" if utterance else str(error)) from None
        between = [] if self.boundary is None else [self.boundary]
        return [id for position, ids in enumerate(words) for id in (between if position else []) + ids]

    @staticmethod
    def characters(texts: Iterable[str]) -> Characters:
        """The characters that occur in `texts` (NFC)."""
        found = {character for text in texts for word in split_words(text) for character in word}
        return Characters((BLANK_TOKEN, BOUNDARY_TOKEN, *sorted(found - {BOUNDARY_TOKEN})))

    @staticmethod
    def phonemes(lexicon: Mapping[str, Entry], g2p: str | None = None) -> Phonemes:
        """The phones of `lexicon`, with and without end of word; those that only noises have, once.

        A noise is a word in brackets, "[laughter]". So 39 phones make 79 labels, 42 phones and 3 noises 88.

        g2p: voice of eSpeak NG that pronounces words beyond the lexicon ("en-us"); None: there are no such words.
        """
        entries = {nfc(word): _pronunciations(word, e) for word, e in lexicon.items()}
        speech: set[str] = set()
        noises: set[str] = set()
        for word, spelled in entries.items():
            (noises if is_noise(word) else speech).update(phone for phones in spelled for phone in phones)
        both = [token for phone in sorted(speech) for token in (phone, phone + END_OF_WORD)]
        return Phonemes((BLANK_TOKEN, *both, *sorted(noises - speech)), entries, g2p)

    @staticmethod
    def bpe(texts: Iterable[str], size: int) -> Labels:
        """`size` labels, blank included, that sentencepiece learns from `texts` by byte pair encoding."""
        from dmao.data.pieces import Pieces

        return Pieces.learn(texts, size)

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> Labels:
        """Undo `state_dict`. UserError for data that is not a label set."""
        try:
            kind = state["kind"]
            if kind == "characters":
                return Characters(tuple(state["tokens"]))
            if kind == "phonemes":
                entries = {word: _pronunciations(word, entry) for word, entry in state["lexicon"].items()}
                return Phonemes(tuple(state["tokens"]), entries, state["g2p"])
            if kind == "bpe":
                from dmao.data.pieces import Pieces

                return Pieces(state["model"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is not a saved label set: {type(error).__name__}: {error}") from error
        raise UserError(f"kind of labels must be one of {', '.join(KINDS)}, got {kind!r}")


@dataclass(frozen=True)
class Characters(Labels):
    """Characters and the boundary between words."""

    kind: ClassVar[str] = "characters"
    boundary: ClassVar[int | None] = BOUNDARY

    tokens: tuple[str, ...]
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)  # token -> id

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", _index(self.tokens, (BLANK_TOKEN, BOUNDARY_TOKEN)))

    def spellings(self, word: str) -> list[list[int]]:
        """Its characters."""
        for character in word:
            if character not in self._ids or character == BOUNDARY_TOKEN:
                raise Unspellable(f"character {character!r} in {word!r} is not among the labels")
        return [[self._ids[character] for character in word]]

    def decode(self, ids: Iterable[int]) -> str:
        """The words, however many boundaries stand between them."""
        return " ".join("".join(" " if id == BOUNDARY else self.tokens[id] for id in ids if id != BLANK).split())

    def state_dict(self) -> dict[str, Any]:
        """The tokens."""
        return {"kind": self.kind, "tokens": list(self.tokens)}


@dataclass(frozen=True)
class Phonemes(Labels):
    """Phones, with and without end of word, and the lexicon that spells words in them."""

    kind: ClassVar[str] = "phonemes"

    tokens: tuple[str, ...]
    lexicon: Mapping[str, tuple[tuple[str, ...], ...]]
    g2p: str | None = None
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)
    guessed: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", _index(self.tokens, (BLANK_TOKEN,)))

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the lexicon."""
        return tuple(sorted(self.lexicon))

    def spellings(self, word: str) -> list[list[int]]:
        """Its pronunciations; beyond the lexicon what eSpeak NG makes of it, noted in `guessed`."""
        entries = self.lexicon.get(word) or (self._guess(word),)
        try:
            return [[self._ids[token] for token in self._mark(phones)] for phones in entries]
        except KeyError as error:
            raise Unspellable(f"phone {error.args[0]!r} of {word!r} is not among the labels") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Phones; " | " behind each word but the last."""
        shown = (self.tokens[id] for id in ids if id != BLANK)
        text = " ".join(f"{t[:-1]} |" if self._ends_word(t) else t for t in shown)
        return text.removesuffix(" |")

    def state_dict(self) -> dict[str, Any]:
        """Tokens and lexicon."""
        lexicon = {word: [list(phones) for phones in entries] for word, entries in self.lexicon.items()}
        return {"kind": self.kind, "tokens": list(self.tokens), "lexicon": lexicon, "g2p": self.g2p}

    def _mark(self, phones: tuple[str, ...]) -> tuple[str, ...]:
        last = phones[-1] + END_OF_WORD
        return (*phones[:-1], last if last in self._ids else phones[-1])

    def _ends_word(self, token: str) -> bool:
        return token.endswith(END_OF_WORD) and token[:-1] in self._ids

    def _guess(self, word: str) -> tuple[str, ...]:
        if self.g2p is None:
            raise Unspellable(f"word {word!r} is not in the lexicon")
        if word not in self.guessed:
            from dmao.data.g2p import pronounce

            self.guessed[word] = pronounce(word, self.g2p, self._ids.keys())
        return self.guessed[word]


def is_noise(word: str) -> bool:
    """Whether a word of a lexicon stands for a sound that is not speech: "[laughter]", "<noise>"."""
    return word.startswith(("[", "<"))


def split_words(text: str) -> list[str]:
    """Split at white space after Unicode normalisation (NFC: one code point per accented letter)."""
    return nfc(text).split()


def nfc(text: str) -> str:
    """One code point per accented letter: as labels spell, scoring compares, lexicons and language models have it."""
    return unicodedata.normalize("NFC", text)


def _pronunciations(word: str, entry: Entry) -> tuple[tuple[str, ...], ...]:
    if not isinstance(entry, (list, tuple)):
        raise UserError(f"lexicon: word {word!r} must have a list of phones, got {entry!r}")
    flat = bool(entry) and isinstance(entry[0], str)
    several: Any = [entry] if flat else entry
    if not all(isinstance(p, (list, tuple)) and all(isinstance(phone, str) for phone in p) for p in several):
        raise UserError(f"lexicon: phones of word {word!r} must be text, got {entry!r}")
    found = tuple(tuple(phones) for phones in several)
    if not found or not all(found):
        raise UserError(f"lexicon: word {word!r} has no phones")
    return found


def _index(tokens: tuple[str, ...], first: tuple[str, ...]) -> dict[str, int]:
    if not all(isinstance(token, str) for token in tokens):
        raise UserError("labels must be text")
    if tokens[: len(first)] != first or len(set(tokens)) != len(tokens):
        raise UserError(f"labels must begin with {' and '.join(first)} and hold nothing twice")
    return {token: id for id, token in enumerate(tokens)}
