"""Conformer block of elastic modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import nn

from dmao_kernels.nn.attention import RelPosSelfAttention, SelfAttention
from dmao_kernels.nn.convolution import ConvolutionModule
from dmao_kernels.nn.feedforward import FeedForward
from dmao_kernels.nn.over_time import reach_of
from dmao_kernels.nn.residual import ResidualBlock

Positions = Literal["none", "relative"]


class ConformerBlock(ResidualBlock):
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
        positions: "none" (the published form), or "relative" for `RelPosSelfAttention` in Transformer-XL's form.
        window: what attention may see, see `SelfAttention`.
        chunk: the same, for streaming: (size, left chunks); convolutions then see earlier frames, and later ones of the
            same chunk only, so that no frame depends on any behind its chunk.
    """

    scales: ClassVar[Mapping[str, float]] = {"ffn1": 0.5, "conv": 1.0, "attention": 1.0, "ffn2": 0.5}

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
        positions: Positions = "none",
        window: tuple[int | None, int | None] | None = None,
        chunk: tuple[int, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.ffn1 = FeedForward(d, expansion * d, dropout, components, activation)
        self.conv = ConvolutionModule(d, kernel, dropout, components, chunk=None if chunk is None else chunk[0])
        attention = attention_class(positions)
        self.attention = attention(d, heads, head_dim, dropout, attention_dropout, window=window, chunk=chunk)
        self.ffn2 = FeedForward(d, expansion * d, dropout, components, activation)
        self.norm = nn.LayerNorm(d)

    @property
    def reach(self) -> int:
        """Frames before itself that a frame sees through the filters."""
        return reach_of(self.conv.depthwise)


def attention_class(positions: str) -> type[SelfAttention]:
    """The attention module for the argument ``positions`` of a block. Raises ValueError for an unknown one."""
    classes = {"none": SelfAttention, "relative": RelPosSelfAttention}
    if positions not in classes:
        raise ValueError(f"positions must be one of {', '.join(classes)}, got {positions!r}")
    return classes[positions]
