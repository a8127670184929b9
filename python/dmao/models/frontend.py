"""VGG front end: log-mel features to encoder frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao_kernels import conv3x3
from dmao_kernels.nn import MaskedLinear


class VggFrontEnd(nn.Module):
    """Two groups of two 3x3 convolutions, each closed by ReLU and max pooling, then Linear to ``width``.

    As in arXiv 2506.13180, where no activation stands between the two convolutions of a group. All utterances
    of a batch form one image, one behind the other in time with a gap of silence between them: padding costs
    nothing. The image has its channels last.

    Args:
        inputs: features per frame.
        width: width of the output.
        channels: output channels of the four convolutions.
        time_pooling: pooling over time of the two groups; an output frame stands for their product.
        frequency_pooling: pooling over features of the two groups.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        channels: Sequence[int] = (32, 64, 64, 32),
        time_pooling: Sequence[int] = (2, 2),
        frequency_pooling: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.pooling = tuple(zip(time_pooling, frequency_pooling, strict=True))
        self.conv1 = nn.Conv2d(1, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.conv4 = nn.Conv2d(third, fourth, 3, padding=1)
        for _, frequency in self.pooling:
            inputs //= frequency
        self.linear = MaskedLinear(fourth * inputs, width)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Packed encoder frames of ``features`` [B, T, inputs], of which ``lengths`` [B] frames are valid.

        Returns ``x`` [N, width], the utterances' frames one behind the other, and ``offsets`` int32 [B + 1] into
        them. What stands beyond an utterance's length is not read.
        """
        subsampling = self.pooling[0][0] * self.pooling[1][0]
        x, valid = _lay_out(features, lengths, subsampling, self.pooling[0][0])
        x, valid = self._group(x, valid, self.conv1, self.conv2, self.pooling[0])
        x, valid = self._group(x, valid, self.conv3, self.conv4, self.pooling[1])
        x = self.linear(x.flatten(2)[0])
        offsets = F.pad((lengths // subsampling).cumsum(0), (1, 0)).to(x.device, torch.int32)
        return x.index_select(0, _indices(valid, x)), offsets

    @staticmethod
    def _group(
        x: Tensor, valid: Tensor, inner: nn.Conv2d, outer: nn.Conv2d, pooling: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        time = pooling[0]
        pooled = valid[time - 1 :: time]  # a pooled frame is valid when the last frame under it is
        x = conv3x3(x, inner.weight, inner.bias, valid=_rows(valid, x))
        return conv3x3(x, outer.weight, outer.bias, valid=_rows(pooled, x), pooling=pooling), pooled


def _lay_out(features: Tensor, lengths: Tensor, multiple: int, gap: int) -> tuple[Tensor, Tensor]:
    """All utterances of ``features`` [B, T, F] in one image [1, L, F, 1], and which of its L frames are valid.

    Each begins at a multiple of ``multiple``, which is that of the whole pooling, and is followed by at least
    ``gap`` frames of zeros: what a convolution sees there is what it sees beyond the end of an utterance alone.
    With the first pooling for ``gap``, one of them is left for the second group.
    """
    spans = (lengths + gap + multiple - 1) // multiple * multiple
    utterance = torch.arange(len(spans), device=spans.device).repeat_interleave(spans)
    frame = torch.arange(len(utterance), device=spans.device) - (spans.cumsum(0) - spans)[utterance]
    valid = frame < lengths[utterance]
    source = (utterance * features.shape[1] + frame)[valid].to(features.device)
    line = features.new_zeros(len(utterance), features.shape[2])
    line = line.index_copy(0, _indices(valid, features), features.flatten(0, 1).index_select(0, source))
    return line.view(1, *line.shape, 1), valid


def _rows(valid: Tensor, x: Tensor) -> Tensor:
    """``valid`` [L] for the one image ``x``."""
    return valid[None].to(x.device)


def _indices(valid: Tensor, x: Tensor) -> Tensor:
    return valid.nonzero()[:, 0].to(x.device)
