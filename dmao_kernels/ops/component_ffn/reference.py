"""component_ffn in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.ops._philox import keep_mask

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}


def component_ffn_reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    live: Tensor | None = None,
    *,
    components: int = 1,
    p: float = 0.0,
    seed: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """The contract of `component_ffn`, for any dtype and device; differentiable and traceable."""
    units = torch.arange(w1.shape[0], device=x.device)
    if live is not None:
        width = w1.shape[0] // components if components else 0
        units = (live.long()[:, None] * width + torch.arange(width, device=x.device)).flatten()
        # What fills the list up names a component of zeros.
        w1, w2 = F.pad(w1, (0, 0, 0, width))[units], F.pad(w2, (0, width))[:, units]
        b1 = None if b1 is None else F.pad(b1, (0, width))[units]
    hidden = ACTIVATIONS[activation](F.linear(x, w1, b1))
    if p > 0 and seed is not None:
        rows = hidden.flatten(0, -2) if hidden.dim() > 1 else hidden[None]
        keep = keep_mask(seed, rows.shape[0], units, p).view_as(hidden)
        hidden = torch.where(keep, hidden / (1 - p), 0)
    return F.linear(hidden, w2, b2)
