"""The operations, one folder each: api (contract, schema), reference, fake, autograd."""

from dmao_kernels.ops.adamw_importance import adamw_importance_
from dmao_kernels.ops.component_ffn import component_ffn
from dmao_kernels.ops.importance import importance_
from dmao_kernels.ops.masked_linear import masked_linear
from dmao_kernels.ops.packing import pack, unpack

__all__ = ["adamw_importance_", "component_ffn", "importance_", "masked_linear", "pack", "unpack"]
