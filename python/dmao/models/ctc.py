"""CTC loss of a batch, with a defined value for utterances that have too many labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dmao.models.conformer_ctc import ConformerConfig


class CtcLoss(NamedTuple):
    """``loss`` per label, differentiable; number of ``labels``; number of ``skipped`` utterances."""

    loss: Tensor
    labels: int
    skipped: int


def ctc_loss(
    log_probs: Tensor, out_lengths: Tensor, targets: Tensor, target_lengths: Tensor, blank: int = 0
) -> CtcLoss:
    """Sum of the utterances' CTC losses (Graves et al., 2006) divided by their total number of labels.

    An utterance whose labels, plus one blank between equal neighbours, do not fit into its frames has no
    alignment and an infinite loss. It contributes neither loss, nor gradient, nor labels, and is counted
    in ``skipped``. If no utterance remains, the loss is zero.

    Args:
        log_probs: [B, T, outputs], log-probabilities.
        out_lengths: integer [B], frames per utterance.
        targets: integer [sum of target_lengths], the labels one utterance behind the other.
        target_lengths: integer [B].
        blank: index of the blank.

    Raises:
        ValueError: shapes do not fit together, or a label is the blank or outside the outputs.
    """
    if log_probs.dim() != 3 or log_probs.shape[0] == 0:
        raise ValueError(f"ctc_loss: log_probs must be [B, T, outputs] with B > 0, got {list(log_probs.shape)}")
    batch, frames, outputs = log_probs.shape
    out_lengths, target_lengths, targets = (t.cpu().long() for t in (out_lengths, target_lengths, targets))
    for name, lengths in (("out_lengths", out_lengths), ("target_lengths", target_lengths)):
        if lengths.shape != (batch,):
            raise ValueError(f"ctc_loss: {name} must be [{batch}], got {list(lengths.shape)}")
    if bool(((out_lengths < 0) | (out_lengths > frames)).any()):
        raise ValueError(f"ctc_loss: out_lengths must be in [0, {frames}], got {out_lengths.tolist()}")
    if bool((target_lengths < 0).any()):
        raise ValueError(f"ctc_loss: target_lengths must not be negative, got {target_lengths.tolist()}")
    if targets.shape != (int(target_lengths.sum()),):
        raise ValueError(
            f"ctc_loss: targets must be [{int(target_lengths.sum())}], the sum of target_lengths, "
            f"got {list(targets.shape)}"
        )
    if bool(((targets < 0) | (targets >= outputs) | (targets == blank)).any()):
        raise ValueError(f"ctc_loss: targets must be in [0, {outputs}) and not the blank {blank}")

    fits = _needed_frames(targets, target_lengths) <= out_lengths
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),
        targets.to(log_probs.device),
        out_lengths,
        target_lengths,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    labels = int(target_lengths[fits].sum())
    return CtcLoss(losses.sum() / max(labels, 1), labels, batch - int(fits.sum()))


def model_loss(outputs: Sequence[Tensor], config: ConformerConfig, targets: Tensor, target_lengths: Tensor) -> CtcLoss:
    """The loss of a model's ``outputs`` (log-probabilities, their lengths, further log-probabilities): of the first
    ones alone, or with ``config.intermediate_weight`` on the mean of the further ones. Errors as of `ctc_loss`.
    """
    log_probs, lengths, *inner = outputs
    last = ctc_loss(log_probs, lengths, targets, target_lengths)
    if not inner:
        return last
    others = [ctc_loss(each, lengths, targets, target_lengths).loss for each in inner]
    weight = config.intermediate_weight
    return last._replace(loss=(1 - weight) * last.loss + weight * torch.stack(others).mean())


def _needed_frames(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Frames of the shortest alignment per utterance [B]: its labels and a blank between equal neighbours."""
    rows = torch.repeat_interleave(torch.arange(len(target_lengths)), target_lengths)
    repeats = (targets[1:] == targets[:-1]) & (rows[1:] == rows[:-1])
    return target_lengths + torch.bincount(rows[1:][repeats], minlength=len(target_lengths))
