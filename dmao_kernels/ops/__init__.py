"""The operations, one folder each: api (contract, schema), reference, fake, autograd."""

from dmao_kernels.ops.component_ffn import component_ffn
from dmao_kernels.ops.importance import importance_

__all__ = ["component_ffn", "importance_"]
