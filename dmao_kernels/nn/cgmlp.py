"""Convolutional gating MLP of the Branchformer, its channels cut into components."""

from __future__ import annotations

from torch import Tensor, nn

from dmao_kernels.families import cgmlp_layout
from dmao_kernels.layout import ComponentLayout
from dmao_kernels.nn.common import require_divisible, require_odd, require_positive, require_probability
from dmao_kernels.nn.linear import MaskedLinear
from dmao_kernels.nn.norm import ComponentLayerNorm
from dmao_kernels.nn.over_time import convolve_depthwise
from dmao_kernels.nn.residual import Branch, Rows, dropped
from dmao_kernels.nn.slots import output_linear, rows_mask


class ConvolutionalGatingMLP(Branch):
    """LayerNorm, Linear, GELU, gating, dropout, Linear, dropout (Peng et al., 2022, section 3.3).

    The hidden units are two halves of ``hidden / 2`` channels; the second, normed and convolved over time, gates
    the first. A component is ``hidden / 2 / components`` channels of both halves: rows of ``linear1``, gains and
    biases of ``gate_norm``, depthwise filters, columns of ``linear2``.

    Args:
        d: width of input and output.
        hidden: hidden units; a multiple of ``2 * components``.
        kernel: taps of the depthwise filters, odd.
        dropout: probability on the gated channels and on the output; follows the module's width in an edit.
        components: number of components the channels are cut into.
        chunk: as of `ConvolutionModule`.

    Raises:
        ValueError: a size is not positive, ``kernel`` is even, ``hidden`` is not a multiple of
            ``2 * components``, or ``dropout`` is outside [0, 1).
    """

    def __init__(
        self,
        d: int,
        hidden: int,
        kernel: int = 31,
        dropout: float = 0.1,
        components: int = 4,
        *,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        layer = "ConvolutionalGatingMLP"
        require_positive(layer, d=d, hidden=hidden, kernel=kernel, components=components, chunk=chunk)
        require_divisible(layer, "hidden", hidden, "2 * components", 2 * components)
        require_probability(layer, dropout=dropout)
        require_odd(layer, kernel=kernel)
        channels = hidden // 2
        self.components = components
        self.dropout = float(dropout)
        self.chunk = chunk
        self.norm = nn.LayerNorm(d)
        self.linear1 = MaskedLinear(d, hidden, activation="gelu")
        self.gate_norm = ComponentLayerNorm(channels, components)
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding="same", groups=channels)
        self.linear2 = MaskedLinear(channels, d)

    @property
    def empty(self) -> bool:
        """True when no component is left: the module contributes nothing, not even its output bias."""
        return self.components == 0

    def component_layout(self) -> tuple[ComponentLayout, int]:
        """The layout of the components in this module's tensors, and their present number."""
        return cgmlp_layout(components="components", dropout=("dropout",)), self.components

    def transform(self, x: Tensor, normed: Tensor, rows: Rows) -> Tensor:
        """Linear, GELU, gating, dropout, Linear."""
        hidden = self.linear1(normed, rows_mask(self.linear1, self.live_slots, repeats=2))
        values, gates = hidden.chunk(2, dim=-1)
        gates = convolve_depthwise(self.depthwise, self.gate_norm(gates), rows, self.chunk)
        return output_linear(self.linear2, dropped(self, values * gates), self.live_slots)
