"""block_attention: attention over what is visible, with relative positions."""

from dmao_kernels.ops.block_attention.api import block_attention

# isort: split
from dmao_kernels.ops.block_attention import autograd, fake  # noqa: F401 - they register on the schemas of api

__all__ = ["block_attention"]
