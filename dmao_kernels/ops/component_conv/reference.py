"""component_conv in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.ops._utterances import padding
from dmao_kernels.ops.component_ffn.reference import ACTIVATIONS
from dmao_kernels.ops.depthwise_conv1d.reference import depthwise_conv1d_reference

NORMS = ("layer", "none")
CONV_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "none": lambda x: x}


def component_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    statistics_weight: Tensor | None = None,
    live: Tensor | None = None,
    *,
    components: int = 1,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    activation: str = "silu",
) -> Tensor:
    """The contract of `component_conv`, for any dtype and device; differentiable and traceable."""
    stored = weight.shape[0]
    width = stored // components if components else 0
    units = None
    if live is not None:
        units = (live.long()[:, None] * width + torch.arange(width, device=x.device)).flatten()
        # What fills the list up names a component of zeros, which has no part in the statistics.
        x = torch.cat([F.pad(half, (0, width))[..., units] for half in x.tensor_split([stored], -1)], -1)
        weight = F.pad(weight, (0, 0, 0, width))[units]
        bias, norm_weight, norm_bias = (
            None if v is None else F.pad(v, (0, width))[units] for v in (bias, norm_weight, norm_bias)
        )
        if statistics_weight is None:
            statistics_weight = torch.ones(components, device=x.device)
        statistics_weight = F.pad(statistics_weight, (0, 1))[live.long()]
    beyond = None if offsets is not None else padding(x, lengths)
    if beyond is not None:
        x = x.masked_fill(beyond, 0)
    y = depthwise_conv1d_reference(F.glu(x, -1), weight, bias, lengths=lengths, offsets=offsets)
    if norm == "layer":
        if statistics_weight is None:
            y = F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)
        else:
            wide = torch.promote_types(y.dtype, torch.float32)
            y = weighted_layer_norm(y, channel_shares(statistics_weight.to(wide), width), norm_weight, norm_bias, eps)
    y = CONV_ACTIVATIONS[activation](y)
    if beyond is not None:
        y = y.masked_fill(beyond, 0)
    return y if units is None else y.new_zeros(*y.shape[:-1], stored + width).index_copy(-1, units, y)[..., :stored]


def channel_shares(weights: Tensor, width: int) -> Tensor:
    """What each channel counts in statistics, 1 in all, where components of `width` channels have these weights."""
    total = (weights.sum() * width).clamp(min=torch.finfo(weights.dtype).tiny)  # where nothing lives
    return (weights / total).repeat_interleave(width)


def weighted_layer_norm(x: Tensor, shares: Tensor, gain: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of x [..., channels] in whose statistics channel i counts shares[i]; they have the shares' dtype."""
    wide = x.to(shares.dtype)
    # Products and sums, not a matrix product: autocast must not lower the precision of statistics.
    centred = wide - (wide * shares).sum(-1, keepdim=True)
    y = centred * torch.rsqrt((centred.square() * shares).sum(-1, keepdim=True) + eps)
    y = y if gain is None else y * gain
    return (y if shift is None else y + shift).to(x.dtype)
