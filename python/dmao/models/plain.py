"""The Conformer-CTC in plain PyTorch, for deployment: what `dmao_kernels.compact` makes of a ConformerCTC."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao.models.conformer_ctc import ConformerCTC
from dmao.models.frontend import VggFrontEnd
from dmao_kernels.nn import sinusoidal_positions
from dmao_kernels.plain import register_plain


class PlainFrontEnd(nn.Module):
    """Padded images, one utterance each, cleared behind the utterance's end between the convolutions."""

    def __init__(self, front: VggFrontEnd, linear: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = front.conv1, front.conv2, front.conv3, front.conv4
        self.linear, self.pooling = linear, front.pooling

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, T', width] of ``features`` [B, T, inputs], and which of them are valid [B, T']."""
        valid = _valid(features.shape[1], lengths)
        x = features[:, None].masked_fill(~valid[:, None, :, None], 0.0)
        groups = ((self.conv1, self.conv2), (self.conv3, self.conv4))
        for (inner, outer), pooling in zip(groups, self.pooling, strict=True):
            x = inner(x).masked_fill(~valid[:, None, :, None], 0.0)
            x, lengths = F.relu(F.max_pool2d(outer(x), pooling)), lengths // pooling[0]
            valid = _valid(x.shape[2], lengths)
            x = x.masked_fill(~valid[:, None, :, None], 0.0)
        return self.linear(x.permute(0, 2, 3, 1).flatten(2)), valid


def _valid(frames: int, lengths: Tensor) -> Tensor:
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


class PlainConformerCTC(nn.Module):
    """Log-probabilities [B, T', outputs] of ``features`` [B, T, inputs] with ``lengths`` [B], and their lengths; there
    are no intermediate ones.

    Lengths are not checked; what stands at and beyond an utterance's end is not defined.
    """

    def __init__(self, model: ConformerCTC, plain: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.subsampling = model.config.subsampling
        self.relative = model.config.positions == "relative"
        self.front = PlainFrontEnd(model.front, plain(model.front.linear))
        self.blocks = nn.ModuleList(plain(block) for block in model.blocks)
        self.dropout = nn.Dropout(model.config.output_dropout)
        self.output = model.output

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same as ConformerCTC's within the utterances."""
        x, valid = self.front(features, lengths.to(features.device))
        positions = sinusoidal_positions(x.shape[1], x.shape[2], x) if self.relative else None
        for block in self.blocks:
            x = block(x, valid, positions=positions)
        logits = self.output(self.dropout(x))
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.log_softmax(logits, dim=-1, dtype=dtype), lengths.long() // self.subsampling


register_plain(ConformerCTC, PlainConformerCTC)
