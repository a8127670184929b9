"""component_conv: GLU, depthwise convolution, norm and activation over the live components, in one pass."""

from dmao_kernels.ops.component_conv.api import component_conv

# isort: split
from dmao_kernels.ops.component_conv import autograd, fake  # noqa: F401 - they register on the schemas of api

__all__ = ["component_conv"]
