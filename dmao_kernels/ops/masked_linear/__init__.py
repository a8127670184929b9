"""masked_linear: a linear layer over the live blocks of its weight."""

from dmao_kernels.ops.masked_linear.api import masked_linear
from dmao_kernels.ops.masked_linear.reference import LINEAR_ACTIVATIONS

# isort: split
from dmao_kernels.ops.masked_linear import autograd, fake  # noqa: F401 - they register on the schemas of api

__all__ = ["LINEAR_ACTIVATIONS", "masked_linear"]
