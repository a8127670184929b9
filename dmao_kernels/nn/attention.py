"""Multi-head self-attention; one head is one component."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao_kernels.layout import ComponentLayout
from dmao_kernels.nn.common import require_positive, require_probability
from dmao_kernels.structure.families import attention_layout


class SelfAttention(nn.Module):
    """LayerNorm, multi-head self-attention without positional encoding, dropout.

    A component is one head: ``head_dim`` rows of ``q``, ``k`` and ``v``, and ``head_dim`` columns of
    ``out``. The number of heads is free: ``heads * head_dim`` need not equal ``d``.

    Args:
        d: width of input and output.
        heads: number of heads.
        head_dim: width of a head.
        dropout: probability on the output; follows the module's width in an edit.
        attention_dropout: the same on attention weights; None: as ``dropout``. On CPU only zero
            allows PyTorch's fused attention.

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
    ) -> None:
        super().__init__()
        require_positive("SelfAttention", d=d, heads=heads, head_dim=head_dim)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        require_probability("SelfAttention", dropout=dropout, attention_dropout=attention_dropout)
        self.heads = heads
        self.head_dim = head_dim
        self.dropout = float(dropout)
        self.attention_dropout = float(attention_dropout)
        self.norm = nn.LayerNorm(d)
        self.q = nn.Linear(d, heads * head_dim)
        self.k = nn.Linear(d, heads * head_dim)
        self.v = nn.Linear(d, heads * head_dim)
        self.out = nn.Linear(heads * head_dim, d)

    @property
    def empty(self) -> bool:
        """True when no head is left: the module contributes nothing, not even its output bias."""
        return self.heads == 0

    def component_layout(self) -> tuple[ComponentLayout, int]:
        """The layout of the heads in this module's tensors, and their present number."""
        return attention_layout(q="q", k="k", v="v", out="out", dropout=("dropout", "attention_dropout")), self.heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``x`` [B, T, d] to [B, T, d]; frames where ``mask`` bool [B, T] is False are not attended to.

        Every sequence must have at least one valid frame. An empty module maps to zeros.
        """
        if self.empty:
            return torch.zeros_like(x)
        normed = self.norm(x)
        q, k, v = (self._split(linear(normed)) for linear in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        y = self.out(y.transpose(1, 2).flatten(2))
        return F.dropout(y, self.dropout, self.training)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
