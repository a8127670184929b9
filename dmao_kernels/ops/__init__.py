"""The operations, one folder each: api (contract, schema), reference, fake, autograd."""

from dmao_kernels.ops.adamw_importance import adamw_importance_
from dmao_kernels.ops.block_attention import block_attention
from dmao_kernels.ops.component_conv import component_conv
from dmao_kernels.ops.component_ffn import component_ffn
from dmao_kernels.ops.conv3x3 import conv3x3
from dmao_kernels.ops.depthwise_conv1d import depthwise_conv1d
from dmao_kernels.ops.dropout_add import dropout_add, dropout_add_layer_norm
from dmao_kernels.ops.gather_components import gather_components
from dmao_kernels.ops.importance import importance_
from dmao_kernels.ops.masked_linear import masked_linear
from dmao_kernels.ops.packing import pack, unpack

__all__ = [
    "adamw_importance_",
    "block_attention",
    "component_conv",
    "component_ffn",
    "conv3x3",
    "depthwise_conv1d",
    "dropout_add",
    "dropout_add_layer_norm",
    "gather_components",
    "importance_",
    "masked_linear",
    "pack",
    "unpack",
]
