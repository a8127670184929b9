"""dropout_add, dropout_add_layer_norm: the residual step, alone and with the LayerNorm of its sum."""

from dmao_kernels.ops.dropout_add.api import dropout_add, dropout_add_layer_norm

# isort: split
from dmao_kernels.ops.dropout_add import autograd, fake  # noqa: F401 - they register on the schemas of api

__all__ = ["dropout_add", "dropout_add_layer_norm"]
