"""nn.Conv1d with a filter of its own for every channel."""

from __future__ import annotations

from torch import Tensor, nn

from dmao_kernels.ops.depthwise_conv1d import depthwise_conv1d
from dmao_kernels.swaps.registry import register_swap, takes, why_not_dtype


class FastDepthwiseConv1d(nn.Conv1d):
    """depthwise convolution over channels-last frames."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Conv1d's, but not contiguous: a copy would take about as long as the convolution."""
        if input.dim() != 3 or not takes(input):
            return super().forward(input)
        return depthwise_conv1d(input.transpose(1, 2), self.weight.squeeze(1), self.bias).transpose(1, 2)


def _why_not(conv: nn.Conv1d) -> str | None:
    if not conv.groups == conv.in_channels == conv.out_channels:
        return "not depthwise"
    taps = conv.kernel_size[0]
    if taps % 2 == 0 or conv.padding not in ("same", (taps // 2,)) or conv.padding_mode != "zeros":
        return "its output is not as long as its input, or its padding is not zero"
    if conv.stride != (1,) or conv.dilation != (1,):
        return "strided or dilated"
    return why_not_dtype(conv)


register_swap(nn.Conv1d, FastDepthwiseConv1d, _why_not)
