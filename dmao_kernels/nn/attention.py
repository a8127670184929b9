"""Multi-head self-attention, without and with relative positions; one head is one component."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dmao_kernels.families import attention_layout
from dmao_kernels.layout import ComponentLayout
from dmao_kernels.nn.common import require_positive, require_probability
from dmao_kernels.nn.linear import MaskedLinear
from dmao_kernels.nn.residual import Branch, Rows, draw_seed, dropout_rate
from dmao_kernels.nn.slots import output_linear, rows_mask
from dmao_kernels.ops import block_attention

RATES = ("dropout", "attention_dropout")


class SelfAttention(Branch):
    """LayerNorm, multi-head self-attention without positional encoding, dropout.

    A component is one head: ``head_dim`` rows of ``q``, ``k`` and ``v``, and ``head_dim`` columns of
    ``out``. The number of heads is free: ``heads * head_dim`` need not equal ``d``.

    Args:
        d: width of input and output.
        heads: number of heads.
        head_dim: width of a head.
        dropout: probability on the output; follows the module's width in an edit.
        attention_dropout: the same on attention weights; None: as ``dropout``.
        window: (left, right), how many frames before and after itself a frame sees; None in place of a number:
            all of them.
        chunk: (size, left chunks): a frame sees its own chunk of ``size`` frames and so many before it (None:
            all).

    Raises:
        ValueError: a size is not positive, or a probability is outside [0, 1).
    """

    def __init__(
        self,
        d: int,
        heads: int,
        head_dim: int = 64,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        *,
        window: tuple[int | None, int | None] | None = None,
        chunk: tuple[int, int | None] | None = None,
    ) -> None:
        super().__init__()
        require_positive(type(self).__name__, d=d, heads=heads, head_dim=head_dim)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        require_probability(type(self).__name__, dropout=dropout, attention_dropout=attention_dropout)
        self.heads = heads
        self.head_dim = head_dim
        self.dropout = float(dropout)
        self.attention_dropout = float(attention_dropout)
        self.window = window
        self.chunk = chunk
        self.norm = nn.LayerNorm(d)
        self.q = MaskedLinear(d, heads * head_dim)
        self.k = MaskedLinear(d, heads * head_dim)
        self.v = MaskedLinear(d, heads * head_dim)
        self.out = MaskedLinear(heads * head_dim, d)

    @property
    def empty(self) -> bool:
        """True when no head is left: the module contributes nothing, not even its output bias."""
        return self.heads == 0

    def component_layout(self) -> tuple[ComponentLayout, int]:
        """The layout of the heads in this module's tensors, and their present number."""
        return attention_layout(dropout=RATES), self.heads

    def transform(self, x: Tensor, normed: Tensor, rows: Rows) -> Tensor:
        """Projections, attention, output projection."""
        mask = rows_mask(self.q, self.live_slots)
        q, k, v = (self._split(linear(normed, mask)) for linear in (self.q, self.k, self.v))
        p = dropout_rate(self, self.attention_dropout)
        y = block_attention(
            q,
            k,
            v,
            lengths=rows.lengths,
            offsets=rows.offsets,
            window=self.window,
            chunk=self.chunk,
            head_mask=self.live_slots,
            p=p,
            seed=draw_seed(p, q.device),
            **self._positions(normed, rows),
        )
        return output_linear(self.out, y.flatten(-2), self.live_slots)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    def _positions(self, normed: Tensor, rows: Rows) -> dict[str, Any]:
        """What block_attention is told about relative positions."""
        return {}


class RelPosSelfAttention(SelfAttention):
    """SelfAttention with relative positions: of Transformer-XL, or from a learnable table.

    Without ``radius`` the logit of query i and key j gets (q_i + position_bias) . (``pos`` of the sinusoids of
    i - j) beside (q_i + content_bias) . k_j (Dai et al., 2019, section 3.3). With ``radius`` R it gets
    q_i . ``table``[R + j - i], distances beyond R clamped (Shaw et al., 2018, with a table per head and for keys
    only). A component is one head, with its rows of ``pos`` and of both biases, or its part of ``table``.

    The sinusoids are the same for all layers: make them once per batch (`sinusoidal_positions`) and pass them as
    ``positions`` [2 R + 1, d], R at least the longest utterance - 1 (of padded rows: T - 1); else each layer makes
    its own, and with packed rows waits for the longest length.

    Args:
        radius: None for Transformer-XL's form; else the greatest distance that is told apart, at least 1.
        d, heads, head_dim, dropout, attention_dropout, window, chunk: as in `SelfAttention`.

    Raises:
        ValueError: a size is not positive, a probability is outside [0, 1), or d is odd without ``radius``.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        head_dim: int = 64,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        *,
        radius: int | None = None,
        window: tuple[int | None, int | None] | None = None,
        chunk: tuple[int, int | None] | None = None,
    ) -> None:
        super().__init__(d, heads, head_dim, dropout, attention_dropout, window=window, chunk=chunk)
        self.radius = radius
        if radius is None:
            if d % 2:
                raise ValueError(f"RelPosSelfAttention: d must be even for sinusoidal positions, got {d}")
            self.pos = MaskedLinear(d, heads * head_dim, bias=False)
            self.content_bias = nn.Parameter(torch.empty(heads, head_dim))
            self.position_bias = nn.Parameter(torch.empty(heads, head_dim))
        else:
            require_positive("RelPosSelfAttention", radius=radius)
            self.table = nn.Parameter(torch.empty(2 * radius + 1, heads, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Biases zero, the table normal: the parameters of this module's own."""
        if self.radius is None:
            nn.init.zeros_(self.content_bias)
            nn.init.zeros_(self.position_bias)
        else:
            nn.init.normal_(self.table, std=self.head_dim**-0.5)

    def component_layout(self) -> tuple[ComponentLayout, int]:
        """The layout of the heads in this module's tensors, and their present number."""
        if self.radius is not None:
            return attention_layout(table="table", dropout=RATES), self.heads
        biases = ("content_bias", "position_bias")
        return attention_layout(pos="pos", biases=biases, dropout=RATES), self.heads

    def _positions(self, normed: Tensor, rows: Rows) -> dict[str, Any]:
        if self.radius is not None:
            return {"rel_pos": self.table}
        positions = rows.positions
        if positions is None:
            positions = sinusoidal_positions(_longest(normed, rows), self.pos.in_features, normed)
        elif rows.offsets is None and positions.shape[0] < 2 * normed.shape[1] - 1:
            raise ValueError(
                f"RelPosSelfAttention: positions must have {2 * normed.shape[1] - 1} rows at least for "
                f"{normed.shape[1]} frames, got {list(positions.shape)}"
            )
        return {
            "rel_pos": self._split(self.pos(positions.to(normed.dtype), rows_mask(self.pos, self.live_slots))),
            "content_bias": self.content_bias,
            "position_bias": self.position_bias,
        }


def sinusoidal_positions(frames: int, d: int, like: Tensor) -> Tensor:
    """The sinusoids of all distances between ``frames`` frames: [2 frames - 1, d], of ``like``'s dtype and device.

    Row r is of distance frames - 1 - r, that is, of keys frames - 1 - r before the query: sines in the first half
    of the columns, cosines in the second, with frequencies 10000^(-2 i / d).
    """
    distance = torch.arange(frames - 1, -frames, -1.0, device=like.device)
    frequency = torch.exp(torch.arange(0.0, d, 2.0, device=like.device) * (-math.log(1e4) / d))
    angle = distance[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1).to(like.dtype)


def _longest(normed: Tensor, rows: Rows) -> int:
    """Frames of the longest utterance, 1 where there is none: then nothing is attended to, but sinusoids are made."""
    if rows.offsets is None:
        return max(normed.shape[1], 1)
    return max(int(rows.offsets.diff(prepend=rows.offsets[:1]).max()), 1)
