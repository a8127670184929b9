"""dropout_add and dropout_add_layer_norm in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.ops._philox import keep_mask


def dropout_add_reference(
    x: Tensor | None, y: Tensor, *, p: float = 0.0, seed: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """The contract of `dropout_add`, for any dtype and device; differentiable and traceable."""
    if p > 0 and seed is not None:
        columns = torch.arange(y.shape[-1], device=y.device)
        keep = keep_mask(seed, y.shape[:-1].numel(), columns, p).view(y.shape)
        y = y * (keep.to(y.dtype) / (1 - p))
    y = y if scale == 1 else y * scale
    return y if x is None else (x + y).to(x.dtype)  # float16 + bfloat16 is float32


def dropout_add_layer_norm_reference(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    scale: float = 1.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The contract of `dropout_add_layer_norm`, for any dtype and device; differentiable and traceable."""
    total = dropout_add_reference(x, y, p=p, seed=seed, scale=scale)
    # PyTorch has not every pair of dtypes on every device, and autocast on GPUs returns float32.
    return total, F.layer_norm(total.to(weight.dtype), x.shape[-1:], weight, bias, eps).to(total.dtype)
