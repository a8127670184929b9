"""E-Branchformer block of elastic modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from dmao_kernels.nn.attention import SelfAttention
from dmao_kernels.nn.cgmlp import ConvolutionalGatingMLP
from dmao_kernels.nn.common import require_odd
from dmao_kernels.nn.conformer import Positions, attention_class
from dmao_kernels.nn.feedforward import FeedForward
from dmao_kernels.nn.linear import MaskedLinear
from dmao_kernels.nn.norm import layer_norm
from dmao_kernels.nn.over_time import convolve_depthwise, reach_of
from dmao_kernels.nn.residual import Branch, ResidualBlock, Rows, dropped


class MergedBranches(Branch):
    """Attention and cgMLP side by side: both outputs, plus their depthwise convolution over time, to a Linear.

    The merger of Kim et al. (2022) is not elastic; of an empty branch it gets zeros.
    """

    def __init__(
        self,
        attention: SelfAttention,
        cgmlp: ConvolutionalGatingMLP,
        d: int,
        kernel: int,
        dropout: float,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.attention = attention
        self.cgmlp = cgmlp
        self.depthwise = nn.Conv1d(2 * d, 2 * d, kernel, padding="same", groups=2 * d)
        self.linear = MaskedLinear(2 * d, d)
        self.dropout = float(dropout)

    @property
    def norm(self) -> nn.LayerNorm:  # type: ignore[override]
        """The attention's; the cgMLP has a norm of its own over the same input."""
        return self.attention.norm

    @property
    def empty(self) -> bool:
        """True when neither branch has a component left."""
        return self.attention.empty and self.cgmlp.empty

    def transform(self, x: Tensor, normed: Tensor, rows: Rows) -> Tensor:
        """Both branches, convolution over their channels, Linear."""
        parts = []
        for branch in (self.attention, self.cgmlp):
            if branch.empty:
                parts.append(torch.zeros_like(normed))
                continue
            own = normed if branch is self.attention else layer_norm(x, branch.norm)
            parts.append(dropped(branch, branch.transform(x, own, rows)))
        both = torch.cat(parts, dim=-1)
        return self.linear(both + convolve_depthwise(self.depthwise, both, rows, self.chunk))


class EBranchformerBlock(ResidualBlock):
    """``x += FFN1(x)/2; x += Merge(MHSA(x), cgMLP(x)); x += FFN2(x)/2; LayerNorm`` (Kim et al., 2022).

    As in arXiv 2506.13180. An empty module is skipped.

    Args:
        d: width; a multiple of ``components``.
        heads: attention heads.
        head_dim: width of a head.
        expansion: hidden units of the feed-forward modules as a multiple of ``d``.
        cgmlp_expansion: the same of the cgMLP, both halves counted.
        kernel: taps of the cgMLP's depthwise convolution, odd.
        merge_kernel: taps of the merger's, odd.
        dropout: probability in all modules.
        attention_dropout: probability on attention weights; None: as ``dropout``.
        components: components per feed-forward and cgMLP module.
        activation: of the feed-forward modules.
        positions, window, chunk: see `ConformerBlock`.
    """

    scales: ClassVar[Mapping[str, float]] = {"ffn1": 0.5, "merge": 1.0, "ffn2": 0.5}

    def __init__(
        self,
        d: int,
        heads: int,
        *,
        head_dim: int = 64,
        expansion: int = 4,
        cgmlp_expansion: int = 6,
        kernel: int = 31,
        merge_kernel: int = 31,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        components: int = 4,
        activation: str = "silu",
        positions: Positions = "none",
        window: tuple[int | None, int | None] | None = None,
        chunk: tuple[int, int | None] | None = None,
    ) -> None:
        super().__init__()
        require_odd("EBranchformerBlock", merge_kernel=merge_kernel)
        attention = attention_class(positions)(
            d, heads, head_dim, dropout, attention_dropout, window=window, chunk=chunk
        )
        frames = None if chunk is None else chunk[0]
        cgmlp = ConvolutionalGatingMLP(d, cgmlp_expansion * d, kernel, dropout, components, chunk=frames)
        self.ffn1 = FeedForward(d, expansion * d, dropout, components, activation)
        self.merge = MergedBranches(attention, cgmlp, d, merge_kernel, dropout, frames)
        self.ffn2 = FeedForward(d, expansion * d, dropout, components, activation)
        self.norm = nn.LayerNorm(d)

    @property
    def reach(self) -> int:
        """Frames before itself that a frame sees through the longest filter."""
        return max(reach_of(m.depthwise) for m in (self.merge, self.merge.cgmlp))
