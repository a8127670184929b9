"""Transcripts of telephone speech: Mississippi State's for training, NIST's references for evaluation."""

from __future__ import annotations

import re

NOISES = ("[laughter]", "[noise]", "[vocalized-noise]")

_LAUGHED = re.compile(r"\[laughter-(.+)\]")
_SAID_AND_MEANT = re.compile(r"\[(.+?)/.+\]")
_COINED = re.compile(r"\{(.+)\}")
_READING = re.compile(r"_\d$")
_NOT_SAID = re.compile(r"\[[^\]]*\]")

_TAG = re.compile(r'<(?:[^<>"]|"[^"]*")*>|<[^>]*>')  # a value may hold ">": <contraction e_form="[it=>it]['s=>is]">
_DOUBLED = re.compile(r"([()])\1")
_ALTERNATIVES = re.compile(r"\{([^/{}]*)/[^{}]*\}")
_OPTIONAL = re.compile(r"\([^)]*\)|%\w+")


def clean_word(word: str) -> str:
    """A word of the transcripts or of their dictionary as it is trained; "" for what is no word.

    "[laughter-yeah]" is "yeah", "t[o]-" is "t-", "[it'n/isn't]" is "it'n" (as said), "{coinage}" is "coinage", "them_1"
    is "them". The noises stay; silence and asides ("<b_aside>") go.
    """
    word = word.lower()
    if word in NOISES:
        return word
    for pattern in (_LAUGHED, _SAID_AND_MEANT, _COINED):
        if match := pattern.fullmatch(word):
            word = match[1]
    word = _NOT_SAID.sub("", _READING.sub("", word))
    return word if re.search(r"\w", word) and not word.startswith("<") else ""


def clean(text: str) -> str:
    """A transcript as it is trained."""
    return " ".join(filter(None, map(clean_word, text.split())))


def clean_reference(text: str) -> str:
    """A reference as a plain word error rate takes it; `marked` keeps what `dmao decode` knows to score.

    Of alternatives "{a / b}" the first; without what may be missing: "(%hesitation)", "(wh-)".
    """
    chosen = _ALTERNATIVES.sub(r"\1", marked(text))
    return " ".join(word for word in _OPTIONAL.sub(" ", chosen).split() if word != "@")


def marked(text: str) -> str:
    """A reference with NIST's marks of alternatives and optional words; without those of contractions and the like.

    Brackets that NIST's own files have twice, "((%hesitation)", stand once.
    """
    return " ".join(_DOUBLED.sub(r"\1", _TAG.sub(" ", text.lower())).split())


def without_noises(text: str) -> str:
    """A cleaned transcript as it is scored."""
    return " ".join(word for word in text.split() if word not in NOISES)
