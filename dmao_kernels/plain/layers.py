"""The layers of dmao_kernels.nn as one writes them with torch.nn alone: what `compact` makes of them.

They take padded batches, run in PyTorch's own operators, and are made of the very nn.Linear, nn.Conv1d and nn.LayerNorm
of the layers they stand for, under the same names. So they export, convert and quantise as any model does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao_kernels.nn.attention import sinusoidal_positions
from dmao_kernels.ops.block_attention.reference import visible_keys
from dmao_kernels.ops.component_conv.reference import weighted_layer_norm
from dmao_kernels.ops.component_ffn import ACTIVATIONS
from dmao_kernels.structure.multihead import attend_with_any_heads


class Empty(nn.Module):
    """Stands for a module that lost all its components: it answers as that did, and has no parameters."""

    def __init__(self, answer: Callable[..., Any], flags: Mapping[str, Any]) -> None:
        super().__init__()
        self.__dict__ |= flags  # what the parent module may want to read
        self.answer = answer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the shape of the first argument."""
        return self.answer(*args, **kwargs)


class WeightedLayerNorm(nn.Module):
    """LayerNorm in whose statistics channel i has the share ``share[i]``; they sum up to 1."""

    share: Tensor

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, share: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, eps
        self.register_buffer("share", share)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., channels]."""
        return weighted_layer_norm(x, self.share, self.weight, self.bias, self.eps)


class Branch(nn.Module, ABC):
    """Norm, a transformation and dropout: what a residual block adds to its input."""

    norm: nn.Module

    def __init__(self, dropout: float, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def transform(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """What stands before the dropout of the output."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Map ``x`` [B, T, d] to the same shape; ``mask`` bool [B, T] is False at padding."""
        refuse_packed(offsets)
        return self.dropout(self.transform(x, mask, positions))


def refuse_packed(offsets: Tensor | None) -> None:
    """Raise ValueError for rows that are packed."""
    if offsets is not None:
        raise ValueError("compact: compacted layers take padded rows with a mask, not packed ones with offsets")


class FeedForward(Branch):
    """Linear, activation, dropout, Linear."""

    w1: nn.Module
    w2: nn.Module

    def __init__(self, dropout: float, modules: Mapping[str, nn.Module], activation: str) -> None:
        super().__init__(dropout, modules)
        self.activation = ACTIVATIONS[activation]

    def transform(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Every frame for itself."""
        return self.w2(self.dropout(self.activation(self.w1(self.norm(x)))))


class Convolved(Branch):
    """A branch with a depthwise convolution; chunk: within chunks of so many frames."""

    depthwise: nn.Conv1d

    def __init__(self, dropout: float, modules: Mapping[str, nn.Module], chunk: int | None) -> None:
        super().__init__(dropout, modules)
        self.chunk = chunk

    def over_time(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The convolution of ``x`` [B, T, channels], whose padding is zero."""
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        if self.chunk is None:
            return self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        frames, reach = x.shape[1], self.depthwise.weight.shape[-1] // 2
        # Every chunk, with what its filters see before it, is an utterance of its own: [B, chunks, channels, frames].
        around = F.pad(x, (0, 0, reach, -frames % self.chunk)).unfold(1, reach + self.chunk, self.chunk)
        y = self.depthwise(around.flatten(0, 1))[..., reach:]
        return y.transpose(1, 2).unflatten(0, around.shape[:2]).flatten(1, 2)[:, :frames]


class Convolution(Convolved):
    """Pointwise Linear, GLU, depthwise convolution, norm, SiLU, pointwise Linear."""

    pointwise1: nn.Module
    depthwise_norm: nn.Module
    pointwise2: nn.Module

    def transform(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Padding is what stands before the first frame: zeros."""
        y = self.over_time(F.glu(self.pointwise1(self.norm(x)), -1), mask)
        return self.pointwise2(F.silu(self.depthwise_norm(y)))


class GatingMLP(Convolved):
    """Linear, GELU, one half normed and convolved and multiplied with the other, Linear."""

    linear1: nn.Module
    gate_norm: nn.Module
    linear2: nn.Module

    def transform(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Padding is what stands before the first frame: zeros."""
        values, gates = F.gelu(self.linear1(self.norm(x))).chunk(2, -1)
        return self.linear2(self.dropout(values * self.over_time(self.gate_norm(gates), mask)))


class Merge(Convolved):
    """Attention and gating MLP side by side, convolved over time, to a Linear."""

    attention: nn.Module
    cgmlp: nn.Module
    linear: nn.Module

    def transform(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Both branches bring their own norm."""
        both = torch.cat([branch(x, mask, positions=positions) for branch in (self.attention, self.cgmlp)], -1)
        return self.linear(both + self.over_time(both, mask))


class Attention(Branch):
    """F.scaled_dot_product_attention; ``visible`` are the arguments window and chunk of the layer."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module

    def __init__(
        self,
        dropout: float,
        modules: Mapping[str, nn.Module],
        heads: int,
        visible: Mapping[str, Any],
        rate: float,
    ) -> None:
        super().__init__(dropout, modules)
        self.heads, self.visible, self.rate = heads, dict(visible), rate

    def transform(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """A frame sees the utterance's frames, as far as window and chunk let it."""
        normed = self.norm(x)
        q, k, v = (self.split(linear(normed)) for linear in (self.q, self.k, self.v))
        seen = None if mask is None else mask[:, None, None]
        if any(self.visible.values()):
            place = torch.arange(x.shape[1], device=x.device)
            near = visible_keys(place, None, **self.visible)
            # Padding sees itself: without any key its softmax would not be a number.
            seen = near if seen is None else near & seen | (place[:, None] == place)
        q, scores = self.relative(q, positions)
        if scores is not None:
            scores = scores * q.shape[-1] ** -0.5
            seen = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, seen, self.rate if self.training else 0.0)
        # Not a view: kernels differ in the strides of y, and torch.export would write down those of one of them.
        return self.out(torch.cat(y.unbind(1), -1))

    def split(self, x: Tensor) -> Tensor:
        """[..., T, H D] to [..., H, T, D]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def relative(self, q: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The queries for the keys, and the positional scores [B, H, T, T] before their scaling."""
        return q, None


class SinusoidAttention(Attention):
    """With Transformer-XL's relative positions."""

    pos: nn.Linear
    content_bias: nn.Parameter
    position_bias: nn.Parameter

    def relative(self, q: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """The scores of all distances, [B, H, T, 2 T - 1], moved to those of all pairs of frames."""
        batch, heads, frames, _ = q.shape
        if positions is None:
            positions = sinusoidal_positions(frames, self.pos.in_features, q)
        scores = (q + self.position_bias[:, None]) @ self.split(self.pos(positions.to(q.dtype))).mT
        scores = F.pad(scores, (1, 0)).view(batch, heads, 2 * frames, frames)[:, :, 1:]
        scores = scores.reshape(batch, heads, frames, 2 * frames - 1)[..., :frames]
        return q + self.content_bias[:, None], scores


class TableAttention(Attention):
    """With relative positions from a table [2 R + 1, H, D]."""

    table: nn.Parameter

    def relative(self, q: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Distances beyond R count as R."""
        place, radius = torch.arange(q.shape[2], device=q.device), self.table.shape[0] // 2
        index = (radius + place - place[:, None]).clamp(0, 2 * radius)
        scores = q @ self.table.permute(1, 2, 0)
        return q, scores.gather(-1, index.expand(*scores.shape[:2], -1, -1))


class MultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention whose heads do not add up to the width of the model: parameters and keys are the same."""

    forward = attend_with_any_heads


class Block(nn.Module):
    """``x += scale * branch(x)`` for every branch, then the norm; empty branches are not there."""

    def __init__(self, branches: Mapping[str, nn.Module], scales: Mapping[str, float], norm: nn.Module) -> None:
        super().__init__()
        self.scales = dict(scales)
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.norm = norm

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Map ``x`` [B, T, d] to the same shape; ``mask`` bool [B, T] is False at padding."""
        refuse_packed(offsets)
        for name, scale in self.scales.items():
            x = x + scale * self.get_submodule(name)(x, mask, positions=positions)
        return self.norm(x)
