"""depthwise_conv1d and its gradients as Triton kernels, those of dmao_kernels/ops/_triton/convolution.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels.ops._triton.convolution import convolve, convolve_backward, gather_taps, tap_gradients
from dmao_kernels.ops._triton.live import Channels
from dmao_kernels.ops._triton.utterances import Utterances


def depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, offsets: Tensor | None
) -> Tensor:
    """y, of x's shape."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        taps = gather_taps(weight, bias, Channels(weight.shape[0]))
        convolve(x.contiguous(), taps, y, Utterances(x, lengths, offsets))
    return y


def depthwise_conv1d_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, lengths: Tensor | None, offsets: Tensor | None, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and, empty without one, bias."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    grad_bias = weight.new_zeros(weight.shape[0] if bias else 0)
    if grad_x.numel():
        utterances, channels = Utterances(x, lengths, offsets), Channels(weight.shape[0])
        grad_y = grad_y.contiguous()
        convolve_backward(grad_y, gather_taps(weight, None, channels), grad_x, utterances, None, channels)
        tap_gradients(grad_y, x.contiguous(), utterances, channels, grad_weight, grad_bias if bias else None)
    return grad_x, grad_weight, grad_bias
