"""From log-probabilities to words: greedy, or with a lexicon and, if wanted, a word n-gram model."""

from dmao.decode.arpa import write_arpa
from dmao.decode.greedy import greedy
from dmao.decode.lexicon import LexiconDecoder

__all__ = ["LexiconDecoder", "greedy", "write_arpa"]
