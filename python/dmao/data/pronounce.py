"""Pronunciations in ARPAbet: from a dictionary, and for words that it lacks from eSpeak NG.

What stands in brackets, as "[noise]", is heard but no word: its one phone is itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from pathlib import Path

from dmao.data.g2p import pronounce as guess
from dmao.data.labels import Unspellable, is_noise, nfc
from dmao.data.problems import Findings

Variants = list[list[str]]

VOICE = "en-us"
_PHONES = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
PHONES = frozenset(_PHONES.split())  # of the CMU dictionary
_NUMBER = re.compile(r"\(\d+\)$")
_STRESS = re.compile(r"(?<=\D)\d$")  # a phone may be a number as a whole


def read_dictionary(path: Path, clean: Callable[[str], str], findings: Findings) -> dict[str, Variants]:
    """word -> its pronunciations, of a file of `word phone phone ...`; "#" and ";;;" begin comments.

    Phones lose their stress, become capitals, and end before a "#", as CMUdict has comments there; words become
    `clean(word)` in NFC, and those that become nothing are left.
    """
    found: dict[str, Variants] = {}
    for where, line in findings.lines(path):
        if line.startswith(("#", ";;;")):
            continue
        written, *rest = line.split()
        phones = list(takewhile(lambda phone: not phone.startswith("#"), rest))
        word = nfc(clean(_NUMBER.sub("", written)))
        if not phones:
            findings.problem("bad line", where, f"expected a word and its phones, got {line.strip()!r}")
        elif word and not is_noise(word):
            variants = found.setdefault(word, [])
            spelled = [_STRESS.sub("", phone).upper() for phone in phones]
            if spelled not in variants:
                variants.append(spelled)
    return found


def pronounce(words: Iterable[str], known: Mapping[str, Variants]) -> tuple[dict[str, Variants], set[str]]:
    """(word -> pronunciations, the words that were guessed); words that nobody can say are in neither."""
    phones = PHONES.union(*(variant for variants in known.values() for variant in variants))
    found: dict[str, Variants] = {}
    guessed = set()
    for word in sorted(set(words)):
        if word in known:
            found[word] = known[word]
        elif is_noise(word):
            found[word] = [[word]]
        else:
            try:
                found[word] = [list(guess(word, VOICE, phones))]
                guessed.add(word)
            except Unspellable:
                continue
    return found, guessed
