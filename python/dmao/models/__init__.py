"""Models whose width is trainable."""

from dmao.models.conformer_ctc import ConformerConfig, ConformerCTC
from dmao.models.ctc import CtcLoss, ctc_loss

__all__ = ["ConformerCTC", "ConformerConfig", "CtcLoss", "ctc_loss"]
