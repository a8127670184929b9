"""conv3x3 in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def conv3x3_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    pooling: tuple[int, int] | None = None,
) -> Tensor:
    """The contract of `conv3x3`, for any dtype and device; differentiable and traceable."""
    if x.numel() and weight.numel():
        # In float64 F.conv2d has no gradient for weights of some strides.
        y = F.conv2d(x.permute(0, 3, 1, 2), weight.contiguous(), bias, padding=1)
    else:  # which it refuses
        y = (0 * (x.sum() + weight.sum())).expand(x.shape[0], weight.shape[0], *x.shape[1:3])
        y = y if bias is None else y + bias[:, None, None]
    if pooling is not None:
        rows, columns = y.shape[2] // pooling[0], y.shape[3] // pooling[1]
        # max_pool2d refuses images without a whole window.
        y = F.relu(F.max_pool2d(y, pooling)) if rows and columns and y.numel() else y[:, :, :rows, :columns]
    y = y.permute(0, 2, 3, 1)
    if valid is not None:
        y = y.masked_fill(~valid[:, :, None, None], 0.0)
    return y.contiguous()
