"""Feed-forward module whose hidden units are cut into components."""

from __future__ import annotations

from torch import Tensor, nn

from dmao_kernels.families import feedforward_layout
from dmao_kernels.layout import ComponentLayout
from dmao_kernels.nn.common import require_divisible, require_plain, require_positive, require_probability
from dmao_kernels.nn.residual import Branch, Rows, draw_seed, dropout_rate
from dmao_kernels.nn.slots import live_list, output_bias
from dmao_kernels.ops.component_ffn import ACTIVATIONS, component_ffn


class FeedForward(Branch):
    """LayerNorm, Linear, activation, dropout, Linear, dropout: the Conformer's feed-forward module.

    A component is ``hidden / components`` hidden units: rows of ``w1`` and the matching columns of ``w2``. Takes
    rows of any shape [..., d].

    Args:
        d: width of input and output.
        hidden: hidden units; a multiple of ``components``.
        dropout: probability on the hidden units and on the output; follows the module's width in an edit.
        components: number of components the hidden units are cut into.
        activation: "silu", "relu" or "gelu".

    Raises:
        ValueError: a size is not positive, ``hidden`` is not a multiple of ``components``, or ``dropout``
            is outside [0, 1).
    """

    def __init__(
        self, d: int, hidden: int, dropout: float = 0.1, components: int = 4, activation: str = "silu"
    ) -> None:
        super().__init__()
        require_positive("FeedForward", d=d, hidden=hidden, components=components)
        require_divisible("FeedForward", "hidden", hidden, "components", components)
        require_probability("FeedForward", dropout=dropout)
        if activation not in ACTIVATIONS:
            raise ValueError(f"FeedForward: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.components = components
        self.dropout = float(dropout)
        self.activation = activation
        self.norm = nn.LayerNorm(d)
        self.w1 = nn.Linear(d, hidden)
        self.w2 = nn.Linear(hidden, d)

    @property
    def empty(self) -> bool:
        """True when no component is left: the module contributes nothing, not even its output bias."""
        return self.components == 0

    def component_layout(self) -> tuple[ComponentLayout, int]:
        """The layout of the components in this module's tensors, and their present number."""
        return feedforward_layout(components="components", dropout=("dropout",)), self.components

    def transform(self, x: Tensor, normed: Tensor, rows: Rows) -> Tensor:
        """Linear, activation, dropout, Linear."""
        require_plain("FeedForward", nn.Linear, w1=self.w1, w2=self.w2)
        p = dropout_rate(self, self.dropout)
        return component_ffn(
            normed,
            self.w1.weight,
            self.w1.bias,
            self.w2.weight,
            output_bias(self.w2.bias, self.live_slots),
            live_list(self.live_slots),
            components=self.components,
            p=p,
            seed=draw_seed(p, normed.device),
            activation=self.activation,
        )
