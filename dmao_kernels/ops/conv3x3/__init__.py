"""conv3x3: convolution of channels-last images with 3 x 3 filters."""

from dmao_kernels.ops.conv3x3.api import conv3x3

# isort: split
from dmao_kernels.ops.conv3x3 import autograd  # noqa: F401 - it registers on the schemas of api

__all__ = ["conv3x3"]
