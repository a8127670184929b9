"""Pronunciations of words that no lexicon holds, from eSpeak NG, in the phones of a lexicon.

A lexicon made by eSpeak NG itself has its phones; an English one has those of CMUdict (39, upper or lower case), or of
Switchboard's lexicon (with ax, el and en). Whatever does not fit into these is an error that names the word: nothing is
left out or replaced by something similar.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

from dmao.data.espeak import Espeak
from dmao.data.labels import Unspellable

# What eSpeak NG's American English says -> phones of CMUdict; the first alternative whose phones the lexicon has.
# The flap and the glottal stop are kinds of T there.
_ARPABET = {
    "ɐ": "AX/AH", "ə": "AX/AH", "ʌ": "AH", "ɚ": "ER", "ɜː": "ER", "æ": "AE", "ɑː": "AA", "ɑ": "AA", "ɔː": "AO",
    "ɔ": "AO", "oː": "AO", "ɛ": "EH", "eɪ": "EY", "ɪ": "IH", "ᵻ": "IH", "i": "IY", "iː": "IY", "ʊ": "UH", "uː": "UW",
    "u": "UW", "oʊ": "OW", "aɪ": "AY", "aʊ": "AW", "ɔɪ": "OY", "ɪɹ": "IH R", "ɛɹ": "EH R", "ʊɹ": "UH R",
    "ɑːɹ": "AA R", "ɔːɹ": "AO R", "oːɹ": "AO R", "aɪɚ": "AY ER", "aɪə": "AY AX/AY AH", "iə": "IY AX/IY AH",
    "əl": "EL/AH L", "n̩": "EN/AH N", "b": "B", "d": "D", "f": "F", "ɡ": "G", "h": "HH", "j": "Y", "k": "K", "l": "L",
    "m": "M", "n": "N", "p": "P", "r": "R", "ɹ": "R", "s": "S", "t": "T", "ɾ": "T", "ʔ": "T", "v": "V", "w": "W",
    "z": "Z", "ŋ": "NG", "ʃ": "SH", "ʒ": "ZH", "θ": "TH", "ð": "DH", "tʃ": "CH", "dʒ": "JH",
}  # fmt: skip


def pronounce(word: str, voice: str, phones: Collection[str]) -> tuple[str, ...]:
    """The pronunciation of `word` by `voice` ("en-us") in `phones`.

    Raises Unspellable where the word is not made of letters (with apostrophes, hyphens and points between, or one at an
    end: "'em", "-cept"), where it has no sound, or where a sound has no phone.
    """
    if not re.fullmatch(r"['’-]?[^\W\d_]+(?:['’.-]+[^\W\d_]+)*['’.-]?", word):
        raise Unspellable(f"word {word!r} is not in the lexicon and cannot be pronounced letter by letter")
    sounds = _say(word, voice)
    if not sounds:
        raise Unspellable(f"word {word!r} is not in the lexicon, and eSpeak NG ({voice}) has no sound for it")
    spelled = []
    for sound in sounds:
        found = _translate(sound, phones)
        if not found:
            raise Unspellable(f"word {word!r} is not in the lexicon, and its sound {sound!r} has no phone there")
        spelled += found
    return tuple(spelled)


def _translate(sound: str, phones: Collection[str]) -> list[str]:
    if sound in phones:
        return [sound]
    alternatives = _ARPABET.get(sound, "").split("/")
    spelled = [cased.split() for a in alternatives for cased in (a, a.lower())]
    return next((s for s in spelled if s and all(phone in phones for phone in s)), [])


@cache
def _engine() -> Espeak:
    return Espeak()


def _say(word: str, voice: str) -> list[str]:
    engine = _engine()
    engine.set_voice(voice)
    return engine.phones(word)
