"""What tests of kernels need: a float64 oracle, the comparison rule, NaN poison, odd shapes."""

from .compare import assert_close_to_oracle
from .oracle import outputs_and_gradients, to_float64
from .poison import Poison, nan_filled_empty
from .shapes import ODD_SIZES

__all__ = [
    "ODD_SIZES",
    "Poison",
    "assert_close_to_oracle",
    "nan_filled_empty",
    "outputs_and_gradients",
    "to_float64",
]
