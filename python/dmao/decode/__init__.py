"""From log-probabilities to words: greedy, by prefixes, or with a lexicon and, if wanted, a word n-gram model."""

from dmao.decode.arpa import write_arpa
from dmao.decode.emissions import Scales
from dmao.decode.greedy import greedy
from dmao.decode.lexicon import LexiconDecoder
from dmao.decode.prefix import PrefixDecoder
from dmao.decode.prior import mean_posterior

__all__ = ["LexiconDecoder", "PrefixDecoder", "Scales", "greedy", "mean_posterior", "write_arpa"]
