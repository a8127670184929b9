"""Scoring as sclite does it: normalisation, alignment, reports, and files for NIST's own tools."""

from dmao.scoring.align import Alignment, align
from dmao.scoring.files import Segment, write_ctm, write_stm, write_trn
from dmao.scoring.normalise import Normaliser, read_glm
from dmao.scoring.rates import ErrorCount, cer, wer
from dmao.scoring.report import Report, Utterance

__all__ = [
    "Alignment",
    "ErrorCount",
    "Normaliser",
    "Report",
    "Segment",
    "Utterance",
    "align",
    "cer",
    "read_glm",
    "wer",
    "write_ctm",
    "write_stm",
    "write_trn",
]
