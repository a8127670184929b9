"""Pronunciations in ARPAbet: from a dictionary, and for words that it lacks from eSpeak NG.

What stands in brackets, as "[noise]", is heard but no word: its one phone is itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dmao.data.espeak import Espeak
from dmao.data.problems import Findings

_VARIANT = re.compile(r"\(\d+\)$")
_STRESS = re.compile(r"\d$")
# IPA of eSpeak NG's American English -> ARPAbet without stress: the 39 phones of the CMU dictionary.
_FROM_IPA = {
    "a": "AA", "aa": "AE", "aɪ": "AY", "aɪə": "AY AH", "aɪɚ": "AY ER", "aʊ": "AW", "b": "B", "d": "D", "dʒ": "JH",
    "eɪ": "EY", "f": "F", "h": "HH", "i": "IY", "iə": "IY AH", "iː": "IY", "j": "Y", "k": "K", "l": "L", "m": "M",
    "n": "N", "n̩": "AH N", "oʊ": "OW", "oː": "OW", "oːɹ": "AO R", "p": "P", "r": "R", "s": "S", "t": "T", "tʃ": "CH",
    "uː": "UW", "v": "V", "w": "W", "x": "K", "z": "Z", "æ": "AE", "ð": "DH", "ŋ": "NG", "ɐ": "AH", "ɑ": "AA",
    "ɑː": "AA", "ɑːɹ": "AA R", "ɔ": "AO", "ɔɪ": "OY", "ɔː": "AO", "ɔːɹ": "AO R", "ə": "AH", "əl": "AH L", "ɚ": "ER",
    "ɛ": "EH", "ɛɹ": "EH R", "ɜ": "ER", "ɜː": "ER", "ɡ": "G", "ɡʲ": "G", "ɪ": "IH", "ɪɹ": "IH R", "ɫ": "L", "ɬ": "L",
    "ɲ": "N Y", "ɹ": "R", "ɾ": "T", "ʃ": "SH", "ʊ": "UH", "ʊɹ": "UH R", "ʌ": "AH", "ʒ": "ZH", "ʔ": "T", "θ": "TH",
    "ᵻ": "IH",
}  # fmt: skip


def read_dictionary(path: Path, clean: Callable[[str], str], findings: Findings) -> dict[str, list[str]]:
    """word -> phones of a file of `word phone phone ...`, the first variant of each; "#" and ";;;" begin comments.

    Phones lose their stress and become capitals; words become `clean(word)`, those that become nothing are left.
    """
    found: dict[str, list[str]] = {}
    for where, line in findings.lines(path):
        if line.startswith(("#", ";;;")):
            continue
        written, *phones = line.split()
        word = clean(_VARIANT.sub("", written))
        if not phones:
            findings.problem("bad line", where, f"expected a word and its phones, got {line.strip()!r}")
        elif word and not written.startswith("["):
            found.setdefault(word, [_STRESS.sub("", phone).upper() for phone in phones])
    return found


def pronounce(words: Iterable[str], known: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], set[str]]:
    """(word -> phones, the words that were guessed); words that nobody can say are in neither."""
    engine = None
    found, guessed = {}, set()
    for word in sorted(set(words)):
        if word in known:
            found[word] = known[word]
        elif word.startswith("["):
            found[word] = [word]
        else:
            engine = engine or _english()
            if phones := _arpabet(engine.phones(word)):
                found[word] = phones
                guessed.add(word)
    return found, guessed


def _english() -> Espeak:
    engine = Espeak()
    engine.set_voice("en-us")
    return engine


def _arpabet(phones: list[str]) -> list[str]:
    """Empty where a phone has no counterpart in English."""
    parts = [part for phone in phones for part in ([phone] if phone in _FROM_IPA else phone.replace("ː", ""))]
    return [] if any(p not in _FROM_IPA for p in parts) else " ".join(_FROM_IPA[p] for p in parts).split()
