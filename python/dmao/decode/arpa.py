"""Word n-gram models with Witten-Bell smoothing, written in the ARPA format that KenLM reads.

    p(w | h) = (c(h w) + n(h) p(w | h')) / (c(h) + n(h))

c counts, n(h) is the number of different words seen after h, and h' is h without its first word (Witten and Bell, 1991,
in the interpolated form of Chen and Goodman, 1998). The end of the recursion is the uniform distribution.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmao.data.labels import split_words
from dmao.errors import UserError
from dmao.files import write_atomically

_BEGIN, _END, _UNKNOWN = "<s>", "</s>", "<unk>"
_NEVER = -99.0  # log10 probability of <s>, by convention
NGram = tuple[str, ...]
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_HEADER = 4096  # bytes
_DENSEST = 100  # n-grams in a byte of a packed file


class WittenBell:
    """Counts of all n-grams up to `order`, and the probabilities that follow from them."""

    def __init__(self, sentences: Iterable[str], order: int, words: Iterable[str] = ()) -> None:
        self.order = order
        self.followers: dict[NGram, Counter[str]] = defaultdict(Counter)  # history -> counts of the next word
        for sentence in sentences:
            unmarked = (word for word in split_words(sentence) if word not in (_BEGIN, _END))
            padded = (_BEGIN, *unmarked, _END)
            for position in range(1, len(padded)):
                for length in range(min(order - 1, position) + 1):
                    self.followers[padded[position - length : position]][padded[position]] += 1
        self.vocabulary = sorted({*self.followers[()], *words, _END, _UNKNOWN})

    def probability(self, history: NGram, word: str) -> float:
        shorter = self.probability(history[1:], word) if history else 1 / len(self.vocabulary)
        counts = self.followers.get(history)
        if not counts:
            return shorter
        return (counts[word] + len(counts) * shorter) / (counts.total() + len(counts))

    def backoff(self, history: NGram) -> float:
        """Return what words unseen after `history` keep of their probability after the shorter one."""
        counts = self.followers.get(history)
        return len(counts) / (counts.total() + len(counts)) if counts else 1.0

    def ngrams(self, length: int) -> list[NGram]:
        """Return the n-grams of one length in order; the unigrams are the vocabulary and <s>."""
        if length == 1:
            return [(_BEGIN,), *((word,) for word in self.vocabulary)]
        return sorted((*h, w) for h, counts in self.followers.items() if len(h) == length - 1 for w in counts)


def write_arpa(sentences: Iterable[str], path: str | Path, order: int = 3, words: Iterable[str] = ()) -> None:
    """Estimate an n-gram model from `sentences` and write it to `path`.

    Args:
        sentences: training texts; marks <s> and </s> in them are passed over.
        path: the ARPA file; packed where its name ends in ".gz".
        order: longest n-gram, at least 2: KenLM reads no unigram models.
        words: further words of the vocabulary that `sentences` may lack.

    Raises:
        UserError: if there is no sentence, `order` is below 2, or `path` cannot be written.
    """
    if order < 2:
        raise UserError(
            f"the order of a language model must be at least 2 (KenLM reads no unigram models), got {order}"
        )
    model = WittenBell(sentences, order, words)
    if not model.followers[()]:
        raise UserError("a language model needs at least one sentence")
    lines = ["\\data\\"]
    levels = [model.ngrams(length) for length in range(1, order + 1)]
    lines += [f"ngram {length}={len(ngrams)}" for length, ngrams in enumerate(levels, 1)]
    for length, ngrams in enumerate(levels, 1):
        lines += ["", f"\\{length}-grams:"]
        lines += [_line(model, ngram, with_backoff=length < order) for ngram in ngrams]
    lines += ["", "\\end\\", ""]
    content = "\n".join(lines).encode()
    packed = Path(path).suffix == ".gz"
    write_atomically(Path(path), gzip.compress(content, mtime=0) if packed else content)  # equal models, equal bytes


def _line(model: WittenBell, ngram: NGram, *, with_backoff: bool) -> str:
    log_probability = _NEVER if ngram == (_BEGIN,) else math.log10(model.probability(ngram[:-1], ngram[-1]))
    line = f"{log_probability:.6f}\t{' '.join(ngram)}"
    if with_backoff and ngram[-1] != _END:
        line += f"\t{math.log10(model.backoff(ngram)):.6f}"
    return line


def check_counts(path: Path) -> None:
    """Raises ValueError where an ARPA file, packed or not, does not begin with counts that it can hold.

    KenLM takes memory for any count, and crashes on a negative one; a binary of its own it uses unread.
    """
    with path.open("rb") as file:
        packed = _PACKED.get(file.read(2), open)
    with packed(path, "rb") as file:
        lines = [line.strip() for line in file.read(_HEADER).decode("utf-8", "replace").splitlines() if line.strip()]
    end = next((number for number, line in enumerate(lines) if number and line.startswith("\\")), 0)
    counts = [re.fullmatch(r"ngram \d{1,2}=(\d{1,15})", line) for line in lines[1:end]]
    if not end or lines[0] != "\\data\\" or not all(counts):
        raise ValueError("an ARPA file must begin with \\data\\ and lines as ngram 1=1000")
    total = sum(int(count[1]) for count in counts if count)
    if total > _DENSEST * path.stat().st_size:
        raise ValueError(f"its header promises {total} n-grams in {path.stat().st_size} bytes")
