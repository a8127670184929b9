"""Models whose width is trainable."""

from dmao.models.conformer_ctc import ConformerConfig, ConformerCTC, ConformerShape
from dmao.models.ctc import CtcLoss, ctc_loss, model_loss
from dmao.models.plain import PlainConformerCTC

__all__ = [
    "ConformerCTC",
    "ConformerConfig",
    "ConformerShape",
    "CtcLoss",
    "PlainConformerCTC",
    "ctc_loss",
    "model_loss",
]
