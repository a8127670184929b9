"""Convolution module of the Conformer, its channels cut into components."""

from __future__ import annotations

from torch import Tensor, nn

from dmao_kernels.families import glu_convolution_layout
from dmao_kernels.layout import ComponentLayout
from dmao_kernels.nn.common import require_divisible, require_odd, require_plain, require_positive, require_probability
from dmao_kernels.nn.linear import MaskedLinear
from dmao_kernels.nn.norm import ComponentLayerNorm
from dmao_kernels.nn.over_time import convolve, reach_of
from dmao_kernels.nn.residual import Branch, Rows
from dmao_kernels.nn.slots import live_list, output_linear, rows_mask
from dmao_kernels.ops import component_conv


class ConvolutionModule(Branch):
    """LayerNorm, pointwise Linear, GLU, depthwise convolution, LayerNorm, SiLU, pointwise Linear, dropout.

    The Conformer's convolution module (Gulati et al., 2020) with LayerNorm for BatchNorm. A component is
    ``d / components`` channels: value rows and gate rows of ``pointwise1``, depthwise filters, gains and
    biases of ``depthwise_norm``, columns of ``pointwise2``.

    Args:
        d: width of input and output, and number of channels; a multiple of ``components``.
        kernel: taps of the depthwise filters, odd; the output is as long as the input.
        dropout: probability on the output; follows the module's width in an edit.
        components: number of components the channels are cut into.
        chunk: frames of a chunk: the filters then see earlier frames, and later ones of the same chunk only; None: all.

    Raises:
        ValueError: a size is not positive, ``kernel`` is even, ``d`` is not a multiple of ``components``,
            or ``dropout`` is outside [0, 1).
    """

    def __init__(
        self, d: int, kernel: int = 31, dropout: float = 0.1, components: int = 4, *, chunk: int | None = None
    ) -> None:
        super().__init__()
        require_positive("ConvolutionModule", d=d, kernel=kernel, components=components, chunk=chunk)
        require_divisible("ConvolutionModule", "d", d, "components", components)
        require_probability("ConvolutionModule", dropout=dropout)
        require_odd("ConvolutionModule", kernel=kernel)
        self.components = components
        self.dropout = float(dropout)
        self.chunk = chunk
        self.norm = nn.LayerNorm(d)
        self.pointwise1 = MaskedLinear(d, 2 * d)
        self.depthwise = nn.Conv1d(d, d, kernel, padding="same", groups=d)
        self.depthwise_norm = ComponentLayerNorm(d, components)
        self.pointwise2 = MaskedLinear(d, d)

    @property
    def empty(self) -> bool:
        """True when no component is left: the module contributes nothing, not even its output bias."""
        return self.components == 0

    def component_layout(self) -> tuple[ComponentLayout, int]:
        """The layout of the components in this module's tensors, and their present number."""
        return glu_convolution_layout(components="components", dropout=("dropout",)), self.components

    def transform(self, x: Tensor, normed: Tensor, rows: Rows) -> Tensor:
        """Pointwise Linear, GLU, depthwise convolution, LayerNorm, SiLU, pointwise Linear."""
        both = self.pointwise1(normed, rows_mask(self.pointwise1, self.live_slots, repeats=2))
        y = convolve(self._convolve, both, rows, self.chunk, reach_of(self.depthwise))
        return output_linear(self.pointwise2, y, self.live_slots)

    def _convolve(self, x: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
        require_plain("ConvolutionModule", nn.Conv1d, depthwise=self.depthwise)
        return component_conv(
            x,
            self.depthwise.weight.squeeze(1),
            self.depthwise.bias,
            self.depthwise_norm.weight,
            self.depthwise_norm.bias,
            self.depthwise_norm.unequal_weights(),
            live_list(self.live_slots),
            components=self.components,
            lengths=lengths,
            offsets=offsets,
            eps=self.depthwise_norm.eps,
        )
