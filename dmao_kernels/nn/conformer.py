"""Conformer block of elastic modules."""

from __future__ import annotations

from torch import Tensor, nn

from dmao_kernels.nn.attention import SelfAttention
from dmao_kernels.nn.convolution import ConvolutionModule
from dmao_kernels.nn.feedforward import FeedForward


class ConformerBlock(nn.Module):
    """``x += FFN1(x)/2; x += Conv(x); x += MHSA(x); x += FFN2(x)/2; LayerNorm``: conv before attention.

    The order of arXiv 2506.13180; each module brings its own LayerNorm and output dropout. An empty module
    is skipped.

    Args:
        d: width; a multiple of ``components``.
        heads: attention heads.
        head_dim: width of a head.
        expansion: hidden units of the feed-forward modules as a multiple of ``d``.
        kernel: taps of the depthwise convolution, odd.
        dropout: probability in all modules.
        attention_dropout: probability on attention weights; None: as ``dropout``.
        components: components per feed-forward and convolution module.
        activation: of the feed-forward modules.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        *,
        head_dim: int = 64,
        expansion: int = 4,
        kernel: int = 31,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        components: int = 4,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.ffn1 = FeedForward(d, expansion * d, dropout, components, activation)
        self.conv = ConvolutionModule(d, kernel, dropout, components)
        self.attention = SelfAttention(d, heads, head_dim, dropout, attention_dropout)
        self.ffn2 = FeedForward(d, expansion * d, dropout, components, activation)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``x`` [B, T, d] to [B, T, d]; ``mask`` bool [B, T] is False at padding."""
        if not self.ffn1.empty:
            x = x + 0.5 * self.ffn1(x)
        if not self.conv.empty:
            x = x + self.conv(x, mask)
        if not self.attention.empty:
            x = x + self.attention(x, mask)
        if not self.ffn2.empty:
            x = x + 0.5 * self.ffn2(x)
        return self.norm(x)
