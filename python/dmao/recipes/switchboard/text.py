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
_CONTRACTION = re.compile(r'(\{[^{}]*\}|\([^()]*\))|<contraction e_form="([^"]*)">\s*([^\s(){}<>]+)')
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
    """A reference with NIST's marks of alternatives and optional words, and of no others.

    A contraction that is tagged with its full form becomes alternatives, "{ it's / it is }". Brackets that NIST's own
    files have twice, "((%hesitation)", stand once.
    """
    text = _CONTRACTION.sub(_in_full, _DOUBLED.sub(r"\1", text.lower()))
    return " ".join(_TAG.sub(" ", text).split())


def _in_full(found: re.Match[str]) -> str:
    """Of a contraction with the form "[it=>it]['s=>is]"; what stands within other marks stays."""
    full = " ".join(re.findall(r"=>([^\]]+)\]", found[2] or ""))
    return f"{{ {found[3]} / {full} }}" if full else found[0]


def without_noises(text: str) -> str:
    """A cleaned transcript as it is scored."""
    return " ".join(word for word in text.split() if word not in NOISES)
