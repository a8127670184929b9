"""component_ffn: the feed-forward layer over its live components."""

from dmao_kernels.ops.component_ffn.api import component_ffn
from dmao_kernels.ops.component_ffn.reference import ACTIVATIONS

# isort: split
from dmao_kernels.ops.component_ffn import autograd, fake  # noqa: F401 - they register on the schemas of api

__all__ = ["ACTIVATIONS", "component_ffn"]
