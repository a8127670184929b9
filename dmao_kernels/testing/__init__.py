"""What tests of kernels need: a float64 oracle, the comparison rule, NaN poison, odd shapes."""

from dmao_kernels.testing.compare import assert_close_to_oracle
from dmao_kernels.testing.oracle import outputs_and_gradients, to_float64
from dmao_kernels.testing.poison import Poison, nan_filled_empty
from dmao_kernels.testing.shapes import ODD_SIZES

__all__ = [
    "ODD_SIZES",
    "Poison",
    "assert_close_to_oracle",
    "nan_filled_empty",
    "outputs_and_gradients",
    "to_float64",
]
