"""What counts as the same word: mapping tables (GLM), alternatives, words that may be left out.

References are written as in NIST's STM files: "(uh)" may be missing from a hypothesis, "{ i'm / i am / @ }" stands for
any of its alternatives ("@": nothing). Case does not matter.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dmao.data.labels import split_words
from dmao.errors import UserError

_log = logging.getLogger(__name__)
_ANYWHERE = re.compile(r"\[\s*\]\s*__\s*\[\s*\]")  # between words, whatever these are
_NOTHING = "@"
Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    """A place in a text: any of `alternatives`; `optional`: a hypothesis may go without."""

    alternatives: tuple[Phrase, ...]
    optional: bool = False


@dataclass(frozen=True)
class Normaliser:
    """Maps references and hypotheses to what is compared.

    rules: phrase -> its replacements, the first matching longest phrase at each word; applied to both sides once.
    drop: words that are taken out of both sides, e.g. "[noise]".
    """

    rules: Mapping[Phrase, tuple[Phrase, ...]] = field(default_factory=dict)
    drop: Collection[str] = ()

    def __str__(self) -> str:
        """The same for the same rules and words only: `dmao compare` tells reports apart by it."""
        digest = hashlib.sha256(repr(sorted(self.rules.items())).encode("utf-8", "surrogateescape")).hexdigest()
        parts = [f"{len(self.rules)} rules ({digest[:8]})"] if self.rules else []
        parts += [f"without {' '.join(sorted(self.drop))}"] if self.drop else []
        return ", ".join(parts) or "none"

    def slots(self, text: str) -> list[Slot]:
        """The places of a reference or hypothesis. UserError where braces do not pair."""
        return self._mapped([slot for slot in map(self._without, _parse(text.lower())) if slot.alternatives != ((),)])

    def _without(self, slot: Slot) -> Slot:
        kept = (tuple(word for word in phrase if word not in self.drop) for phrase in slot.alternatives)
        return Slot(tuple(dict.fromkeys(kept)), slot.optional)

    def _mapped(self, slots: list[Slot]) -> list[Slot]:
        longest = max(map(len, self.rules), default=0)
        result: list[Slot] = []
        position = 0
        while position < len(slots):
            for length in range(min(longest, len(slots) - position), 0, -1):
                phrase = _plain(slots[position : position + length])
                if phrase is not None and phrase in self.rules:
                    optional = all(slot.optional for slot in slots[position : position + length])
                    result.append(Slot(self.rules[phrase], optional))
                    position += length
                    break
            else:
                result.append(slots[position])
                position += 1
        return [slot for slot in result if slot.alternatives != ((),)]


def read_glm(path: str | Path) -> dict[Phrase, tuple[Phrase, ...]]:
    """The rules of a global mapping file: `[from] => to` or `from => {[to] / [or to]}`, mostly with ` / [ ] __ [ ]`.

    Comments (;;) and settings (*) are skipped. Rules that hold between certain neighbours only are left out with a
    warning: none of the Hub5 conventions for words needs them.

    Raises UserError where the file cannot be read, or a line is no rule.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"cannot read mapping {path}: {error.strerror or error}") from error
    rules: dict[Phrase, tuple[Phrase, ...]] = {}
    special = 0
    for number, line in enumerate(lines, 1):
        line = line.partition(";;")[0].strip().lower()
        if not line or line.startswith("*"):
            continue
        left, arrow, right = line.partition("=>")
        if not arrow or not left.strip():
            raise UserError(f"mapping {path}, line {number}: expected `from => to`, got {line!r}")
        if "__" in right:
            right, _, context = right.rpartition("/")
            if not _ANYWHERE.fullmatch(context.strip()):
                special += 1
                continue
        rules.setdefault(_phrase(left), _replacements(right.strip()))
    if special:
        _log.warning("mapping %s: %d rules that depend on the neighbours are left out", path, special)
    return rules


def _replacements(text: str) -> tuple[Phrase, ...]:
    inner = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    return tuple(_phrase(part) for part in inner.split("/")) if inner != text else (_phrase(text),)


def _phrase(text: str) -> Phrase:
    """The words of "[i am]" or "i am"."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]") and "]" not in text[:-1]:
        text = text[1:-1]
    return tuple(word for word in split_words(text) if word != _NOTHING)


def _plain(slots: Iterable[Slot]) -> Phrase | None:
    """The words of `slots` where each is just one word."""
    words: list[str] = []
    for slot in slots:
        if len(slot.alternatives) != 1:
            return None
        words += slot.alternatives[0]
    return tuple(words)


def _parse(text: str) -> list[Slot]:
    slots: list[Slot] = []
    alternatives: list[list[str]] | None = None
    for word in split_words(re.sub(r"([{}])", r" \1 ", text)):
        if word == "{" and alternatives is None:
            alternatives = [[]]
        elif word == "}" and alternatives is not None:
            slots.append(Slot(tuple(tuple(words) for words in alternatives)))
            alternatives = None
        elif word in ("{", "}"):
            raise UserError(f"score: the braces of {text!r} do not pair")
        elif alternatives is None:
            optional = len(word) > 2 and word[0] == "(" and word[-1] == ")"
            slots.append(Slot(((word[1:-1] if optional else word,),), optional))
        elif word == "/":
            alternatives.append([])
        elif word != _NOTHING:
            alternatives[-1].append(word)
    if alternatives is not None:
        raise UserError(f"score: the braces of {text!r} do not pair")
    return slots
