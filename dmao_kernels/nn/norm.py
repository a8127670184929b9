"""LayerNorm over channels that are cut into components, invariant to the copying of a component."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao_kernels.nn.common import require_divisible, require_positive
from dmao_kernels.ops.component_conv.reference import channel_shares, weighted_layer_norm


def layer_norm(x: Tensor, norm: nn.LayerNorm | ComponentLayerNorm) -> Tensor:
    """LayerNorm of ``x`` [..., channels] with the parameters of ``norm``, computed in float32 at least.

    PyTorch's CPU kernel adds up the gradients of weight and bias in the dtype of ``x``: over many rows of bfloat16
    little of them is left.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    weight, bias = (None if p is None else p.to(wide.dtype) for p in (norm.weight, norm.bias))
    return F.layer_norm(wide, (wide.shape[-1],), weight, bias, norm.eps).to(x.dtype)


class ComponentLayerNorm(nn.Module):
    """LayerNorm over ``channels`` whose mean and variance weigh each component.

    With p_i = weight of channel i's component / sum over all channels of these weights:
    mean = sum_i p_i x_i, variance = sum_i p_i (x_i - mean)^2. With equal weights this is LayerNorm. When a
    component is copied, source and copy get half of its weight each, so that the statistics, and with them
    all other channels, stay exactly what they were.

    The weights are the buffer ``statistics_weight`` [components]. Replacing that tensor, as an edit does, or
    loading a state dict is noticed; whoever writes into it in place calls ``refresh_statistics()``. In slots storage
    (`Elastic`), where edits write in place, ``in_slots`` is set: the weights are then never looked at, and where none
    is left the output is the bias.

    Args:
        channels: width of the last axis; a multiple of ``components``.
        components: number of components the channels are cut into.
        eps: added to the variance.
    """

    statistics_weight: Tensor

    def __init__(self, channels: int, components: int = 4, eps: float = 1e-5) -> None:
        super().__init__()
        require_positive("ComponentLayerNorm", channels=channels, components=components)
        require_divisible("ComponentLayerNorm", "channels", channels, "components", components)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("statistics_weight", torch.ones(components))
        self.in_slots = False
        self._equal_weights = True
        self._read_weights = self.statistics_weight

    def refresh_statistics(self) -> None:
        """Read the weights and choose the way to compute; a host sync, but only where the weights changed.

        On the device meta there are none to read.

        Raises:
            ValueError: a weight is negative or not finite, or there are weights and all are zero.
        """
        if self.statistics_weight.is_meta:
            return
        weights = self.statistics_weight.detach().double().cpu()
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ValueError(
                "ComponentLayerNorm: statistics_weight must be finite and not negative, "
                f"got {self.statistics_weight.tolist()}"
            )
        if weights.numel() and not bool(weights.any()):
            raise ValueError("ComponentLayerNorm: statistics_weight must not be all zero")
        self._equal_weights = bool((weights == weights[:1]).all())
        self._read_weights = self.statistics_weight

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.in_slots:
            self.refresh_statistics()

    def unequal_weights(self) -> Tensor | None:
        """The weights, or None where they are equal, so that this is LayerNorm."""
        if self.in_slots:
            return self.statistics_weight
        # A compiler cannot read the weights; the weighted way is right for equal weights as well.
        if self.statistics_weight is not self._read_weights and not torch.compiler.is_compiling():
            self.refresh_statistics()
        equal = self.statistics_weight is self._read_weights and self._equal_weights
        return None if equal else self.statistics_weight

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., channels]."""
        if self.unequal_weights() is None:
            return layer_norm(x, self)
        return weighted_layer_norm(x, self.shares(), self.weight, self.bias, self.eps)

    def shares(self) -> Tensor:
        """p_i of the class docstring [channels], in float32 at least."""
        weights = self.statistics_weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return channel_shares(weights, self.weight.numel() // weights.numel())
