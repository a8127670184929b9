"""depthwise_conv1d: every channel convolved over its utterance with its own filter."""

from dmao_kernels.ops.depthwise_conv1d.api import depthwise_conv1d

# isort: split
from dmao_kernels.ops.depthwise_conv1d import autograd, fake  # noqa: F401 - they register on the schemas of api

__all__ = ["depthwise_conv1d"]
