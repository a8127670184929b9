"""masked_linear in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.block_mask import BlockMask

LINEAR_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "glu": F.glu,
}


def masked_linear_reference(
    x: Tensor, w: Tensor, b: Tensor | None = None, mask: BlockMask | None = None, *, activation: str = "none"
) -> Tensor:
    """The contract of `masked_linear`, for any dtype and device; differentiable and traceable."""
    if mask is not None:
        w = torch.where(mask.elements(*w.shape), w, 0)
    return LINEAR_ACTIVATIONS[activation](F.linear(x, w, b))
