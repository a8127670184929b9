"""What counts as the same word: mapping tables (GLM), alternatives, words that may be left out.

References are written as in NIST's STM files: words of "(uh)" and "(you know)" may be missing from a hypothesis,
"{ i'm / i am / @ }" stands for any of its alternatives ("@": nothing). Case does not matter.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path

from dmao.data.labels import nfc, split_words
from dmao.errors import UserError

_log = logging.getLogger(__name__)
_ANYWHERE = re.compile(r"\[\s*\]\s*__\s*\[\s*\]")  # between words, whatever these are
_ONLY_FOR = re.compile(r';;\s+input_dependent_application\s*=\s*"([^"]*)"')
_KINDS = (("stm", "ref"), ("ctm", "hyp"))  # what NIST's filter calls references, and hypotheses
_GROUP = re.compile(r"(?<!\S)\(([^(){}]+)\)(?!\S)")  # of words that may be missing
_WITHIN = re.compile(r"(?<=.)-(?=.)")  # a hyphen at the end of a word marks a fragment
_NOTHING = "@"
Phrase = tuple[str, ...]
Rules = Mapping[Phrase, tuple[Phrase, ...]]


@dataclass(frozen=True)
class Slot:
    """A place in a text: any of `alternatives`; `optional`: a hypothesis may go without."""

    alternatives: tuple[Phrase, ...]
    optional: bool = False


@dataclass(frozen=True)
class Normaliser:
    """Maps references and hypotheses to what is compared.

    references, hypotheses: the rules for each, as `read_glm` gives them: phrase -> its replacements, the longest
        matching phrase at each word, applied once.
    drop: words as they are written, before the rules, that are taken out of both sides, e.g. "[noise]".

    TypeError where the rules of a side are no mapping.
    """

    references: Rules = field(default_factory=dict)
    hypotheses: Rules = field(default_factory=dict)
    drop: Collection[str] = ()

    def __post_init__(self) -> None:
        for name, rules in (("references", self.references), ("hypotheses", self.hypotheses)):
            if not isinstance(rules, Mapping):
                raise TypeError(f"Normaliser: {name} must map phrases to replacements, got a {type(rules).__name__}")
        object.__setattr__(self, "drop", frozenset(nfc(word.lower()) for word in self.drop))

    def __str__(self) -> str:
        """The same for the same rules and words only: `dmao compare` tells reports apart by it."""
        rules = [sorted(side.items()) for side in (self.references, self.hypotheses)]
        digest = hashlib.sha256(repr(rules).encode("utf-8", "surrogateescape")).hexdigest()
        parts = [f"{len(set(chain(*rules)))} rules ({digest[:8]})"] if self.official else []
        parts += [f"without {' '.join(sorted(self.drop))}"] if self.drop else []
        return ", ".join(parts) or "none"

    @property
    def official(self) -> bool:
        """Whether there are rules. With them NIST also parts words at hyphens and takes fragments for whole words."""
        return bool(self.references or self.hypotheses)

    def reference(self, text: str) -> list[Slot]:
        """The places of a reference. UserError where braces do not pair."""
        return self._slots(text, self.references)

    def hypothesis(self, text: str) -> list[Slot]:
        """The places of a hypothesis. UserError where braces do not pair."""
        return self._slots(text, self.hypotheses)

    def for_sclite(self, text: str) -> str:
        """A reference as sclite reads it: without the words of `drop`, those that may be missing in brackets each."""
        return " ".join(map(_written, _worded(map(self._without, _parse(text)))))

    def _slots(self, text: str, rules: Rules) -> list[Slot]:
        slots = _mapped(_worded(map(self._without, _parse(text.lower()))), rules)
        return list(map(_parted, slots)) if self.official else slots

    def _without(self, slot: Slot) -> Slot:
        kept = (tuple(word for word in phrase if word.lower() not in self.drop) for phrase in slot.alternatives)
        return Slot(tuple(dict.fromkeys(kept)), slot.optional)


def _worded(slots: Iterable[Slot]) -> list[Slot]:
    """Without those that stand for nothing."""
    return [slot for slot in slots if slot.alternatives != ((),)]


def _written(slot: Slot) -> str:
    phrases = [" ".join(phrase) or _NOTHING for phrase in slot.alternatives]
    if len(phrases) > 1:
        return f"{{ {' / '.join(phrases)} }}"
    return f"({phrases[0]})" if slot.optional else phrases[0]


def _mapped(slots: list[Slot], rules: Rules) -> list[Slot]:
    longest = max(map(len, rules), default=0)
    result: list[Slot] = []
    position = 0
    while position < len(slots):
        for length in range(min(longest, len(slots) - position), 0, -1):
            phrase = _plain(slots[position : position + length])
            if phrase is not None and phrase in rules:
                optional = all(slot.optional for slot in slots[position : position + length])
                result.append(Slot(rules[phrase], optional))
                position += length
                break
        else:
            slot = slots[position]
            if len(slot.alternatives) > 1:
                written = chain.from_iterable(_rewritten(phrase, rules) for phrase in slot.alternatives)
                slot = replace(slot, alternatives=tuple(dict.fromkeys(written)))
            result.append(slot)
            position += 1
    return _worded(result)


def _rewritten(phrase: Phrase, rules: Rules) -> Iterator[Phrase]:
    """All that one alternative stands for once the rules are applied within it."""
    slots = _mapped([Slot(((word,),)) for word in phrase], rules)
    for choice in product(*(slot.alternatives for slot in slots)):
        yield tuple(chain.from_iterable(choice))


def _parted(slot: Slot) -> Slot:
    """Words with hyphens as several words."""
    phrases = (chain.from_iterable(_WITHIN.split(word) for word in phrase) for phrase in slot.alternatives)
    return replace(slot, alternatives=tuple(tuple(filter(None, phrase)) for phrase in phrases))


def read_glm(path: str | Path) -> tuple[Rules, Rules]:
    """The rules of a global mapping file for references and for hypotheses, which are those for all and some more.

    They are written `[from] => to` or `from => {[to] / [or to]}`, mostly with ` / [ ] __ [ ]`; what follows
    `;; INPUT_DEPENDENT_APPLICATION = "ctm"` is for hypotheses alone, as NIST's csrfilt has it.

    Comments (;;) and settings (*) are skipped. Rules that hold between certain neighbours only are left out with a
    warning: none of the Hub5 conventions for words needs them.

    Raises UserError where the file cannot be read, a line is no rule, or no rule is left.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"cannot read mapping {path}: {error.strerror or error}") from error
    rules: tuple[dict[Phrase, tuple[Phrase, ...]], ...] = ({}, {})
    concerned = rules
    special = 0
    for number, line in enumerate(map(str.lower, lines), 1):
        if only := _ONLY_FOR.match(line):
            concerned = tuple(side for side, kinds in zip(rules, _KINDS, strict=True) if _names(only[1], kinds))
        line = line.partition(";;")[0].strip()
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
        for side in concerned:
            side.setdefault(_phrase(left), _replacements(right))
    if special:
        _log.warning("mapping %s: %d rules that depend on the neighbours are left out", path, special)
    if not any(rules):
        raise UserError(f"mapping {path}: expected rules `from => to`, found none that can be used")
    return rules[0], rules[1]


def _names(expression: str, kinds: Iterable[str]) -> bool:
    """Whether a regular expression is of one of `kinds`; one that is none names what it is."""
    try:
        return any(re.search(expression, kind) for kind in kinds)
    except re.error:
        return expression in kinds


def _replacements(text: str) -> tuple[Phrase, ...]:
    inner = _unbracketed(text)
    if inner.startswith("{") and inner.endswith("}"):
        return tuple(map(_phrase, inner[1:-1].split("/")))
    return (_phrase(text),)


def _phrase(text: str) -> Phrase:
    """The words of "[i am]" or "i am"; of "[[silence]]" "[silence]"."""
    return tuple(word for word in split_words(_unbracketed(text)) if word != _NOTHING)


def _unbracketed(text: str) -> str:
    """NIST's own files lack one of the brackets now and then."""
    return text.strip().removeprefix("[").removesuffix("]").strip()


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
    for word in _tokens(text):
        if word == "{" and alternatives is None:
            alternatives = [[]]
        elif word == "}" and alternatives is not None:
            slots.append(Slot(tuple(dict.fromkeys(chain.from_iterable(map(_readings, alternatives))))))
            alternatives = None
        elif word in ("{", "}"):
            raise UserError(f"score: the braces of {text!r} do not pair")
        elif alternatives is None:
            bare = _bare(word)
            slots.append(Slot(((bare,),), bare != word))
        elif word == "/":
            alternatives.append([])
        elif word != _NOTHING:
            alternatives[-1].append(word)
    if alternatives is not None:
        raise UserError(f"score: the braces of {text!r} do not pair")
    return slots


def _tokens(text: str) -> list[str]:
    """The words, those of "(you know)" in brackets each, and the marks of alternatives."""

    def each(group: re.Match[str]) -> str:
        return " ".join(f"({word})" for word in split_words(group[1]))

    return split_words(_GROUP.sub(each, re.sub(r"([{}])", r" \1 ", text)))


def _bare(word: str) -> str:
    """A word without the brackets of those that may be missing."""
    return word[1:-1] if len(word) > 2 and word[0] == "(" and word[-1] == ")" else word


def _readings(words: list[str]) -> Iterator[Phrase]:
    """One of several alternatives: with the words that may be missing, and without them."""
    yield tuple(map(_bare, words))
    yield tuple(word for word in words if word == _bare(word))
