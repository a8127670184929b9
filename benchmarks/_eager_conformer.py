"""The trainer's Conformer-CTC as one writes it in plain PyTorch: padded batches, nn.functional, channels first.

Parameters have the names of `dmao.models.ConformerCTC`, so that its weights can be loaded. Attention is either
F.scaled_dot_product_attention with a mask of the padding (the published form, without positions), or
Transformer-XL's with the positional scores materialised and shifted, as Conformers of other toolkits have it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from dmao.models import ConformerConfig
from torch import Tensor, nn


class FeedForward(nn.Module):
    def __init__(self, d: int, hidden: int, p: float) -> None:
        super().__init__()
        self.norm, self.w1, self.w2, self.p = nn.LayerNorm(d), nn.Linear(d, hidden), nn.Linear(hidden, d), p

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.silu(self.w1(self.norm(x))), self.p, self.training)
        return F.dropout(self.w2(hidden), self.p, self.training)


class Convolution(nn.Module):
    def __init__(self, d: int, kernel: int, p: float) -> None:
        super().__init__()
        self.norm, self.pointwise1 = nn.LayerNorm(d), nn.Linear(d, 2 * d)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d)
        self.depthwise_norm, self.pointwise2, self.p = nn.LayerNorm(d), nn.Linear(d, d), p

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        y = F.glu(self.pointwise1(self.norm(x)), dim=-1).masked_fill(~valid[..., None], 0.0)
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        return F.dropout(self.pointwise2(F.silu(self.depthwise_norm(y))), self.p, self.training)


class Attention(nn.Module):
    def __init__(self, d: int, heads: int, p: float, relative: bool) -> None:
        super().__init__()
        self.heads, self.p, self.relative = heads, p, relative
        self.norm, self.out = nn.LayerNorm(d), nn.Linear(d, d)
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        if relative:
            self.pos = nn.Linear(d, d, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(heads, d // heads))
            self.position_bias = nn.Parameter(torch.zeros(heads, d // heads))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def forward(self, x: Tensor, valid: Tensor, positions: Tensor | None) -> Tensor:
        normed = self.norm(x)
        q, k, v = self.split(self.q(normed)), self.split(self.k(normed)), self.split(self.v(normed))
        seen, p = valid[:, None, None], self.p if self.training else 0.0
        if positions is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=p)
        else:
            scores = (q + self.content_bias[:, None]) @ k.mT + self.shifted(q, positions)
            weights = (scores * q.shape[-1] ** -0.5).masked_fill(~seen, -math.inf).softmax(-1)
            y = F.dropout(weights, p) @ v
        return F.dropout(self.out(y.transpose(1, 2).flatten(2)), self.p, self.training)

    def shifted(self, q: Tensor, positions: Tensor) -> Tensor:
        """The scores of all distances, [B, H, T, 2 T - 1], moved to those of all pairs of frames."""
        batch, heads, frames, _ = q.shape
        scores = (q + self.position_bias[:, None]) @ self.split(self.pos(positions)).mT
        scores = F.pad(scores, (1, 0)).view(batch, heads, 2 * frames, frames)[:, :, 1:]
        return scores.reshape(batch, heads, frames, 2 * frames - 1)[..., :frames]


class Block(nn.Module):
    def __init__(self, config: ConformerConfig, relative: bool) -> None:
        super().__init__()
        d, p = config.width, config.dropout
        self.ffn1, self.ffn2 = (FeedForward(d, config.expansion * d, p) for _ in range(2))
        self.conv = Convolution(d, config.kernel, p)
        self.attention = Attention(d, config.heads or 1, p, relative)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, valid: Tensor, positions: Tensor | None) -> Tensor:
        x = x + 0.5 * self.ffn1(x)
        x = x + self.conv(x, valid)
        x = x + self.attention(x, valid, positions)
        x = x + 0.5 * self.ffn2(x)
        return self.norm(x)


class FrontEnd(nn.Module):
    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        first, second, third, fourth = config.front_channels
        self.conv1, self.conv2 = nn.Conv2d(1, first, 3, padding=1), nn.Conv2d(first, second, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(second, third, 3, padding=1), nn.Conv2d(third, fourth, 3, padding=1)
        self.linear = nn.Linear(fourth * config.inputs, config.width)

    def forward(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Padding is cleared between the convolutions, without which an utterance's end would depend on it."""
        x = features[:, None].masked_fill(~valid[:, None, :, None], 0.0)
        for inner, outer in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            x = inner(x).masked_fill(~valid[:, None, :, None], 0.0)
            x = F.relu(F.max_pool2d(outer(x), (2, 1)))
            valid = valid[:, 1::2]
            x = x.masked_fill(~valid[:, None, :, None], 0.0)
        return self.linear(x.permute(0, 2, 3, 1).flatten(2)), valid


class EagerConformerCTC(nn.Module):
    """Log-probabilities [B, T // 4, outputs] of ``features`` [B, T, inputs] with ``lengths`` [B]."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.relative = config.positions == "relative"
        self.front = FrontEnd(config)
        self.blocks = nn.ModuleList(Block(config, self.relative) for _ in range(config.blocks))
        self.output = nn.Linear(config.width, config.outputs)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        valid = torch.arange(features.shape[1]) < lengths[:, None]
        x, valid = self.front(features, valid)
        positions = self.positions(x.shape[1], x) if self.relative else None
        for block in self.blocks:
            x = block(x, valid, positions)
        logits = self.output(F.dropout(x, self.config.output_dropout, self.training))
        return F.log_softmax(logits.float(), dim=-1), lengths // 4

    def positions(self, frames: int, like: Tensor) -> Tensor:
        d = self.config.width
        angle = torch.arange(frames - 1, -frames, -1.0)[:, None] * 10000 ** (-torch.arange(0.0, d, 2.0) / d)
        return torch.cat([angle.sin(), angle.cos()], 1).to(like.dtype)
