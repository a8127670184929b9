"""gather_components: components of many tensors, moved and shared out, in one pass."""

from dmao_kernels.ops.gather_components.api import gather_components

__all__ = ["gather_components"]
