"""Kernels and layers for networks whose width is trained (grow-and-drop, arXiv 2506.13180).

Here are the operations, and which implementation of them runs. To be imported by name:

    dmao_kernels.nn         elastic layers: feed-forward, convolution, attention, Conformer and E-Branchformer blocks
    dmao_kernels.structure  what a component of a module is, scores, plans, edits, saved structure
    dmao_kernels.plain      the layers in plain PyTorch: what `compact` makes of them, and how to add to it
    dmao_kernels.swaps      what `accelerate` knows of other people's modules, and how to add to it
    dmao_kernels.layout     patterns such as "(two C u) d", and ComponentLayout, which collects them
    dmao_kernels.testing    float64 oracle, comparison rule, NaN poison
"""

from dmao_kernels._version import __version__
from dmao_kernels.block_mask import BlockMask
from dmao_kernels.dispatch import BACKENDS, can_run, cpu_capability, use_backend
from dmao_kernels.ops import (
    adamw_importance_,
    block_attention,
    component_conv,
    component_ffn,
    conv3x3,
    depthwise_conv1d,
    dropout_add,
    dropout_add_layer_norm,
    gather_components,
    importance_,
    masked_linear,
    pack,
    unpack,
)
from dmao_kernels.plain import compact
from dmao_kernels.swaps import Acceleration, accelerate

__all__ = [
    "BACKENDS",
    "Acceleration",
    "BlockMask",
    "__version__",
    "accelerate",
    "adamw_importance_",
    "block_attention",
    "can_run",
    "compact",
    "component_conv",
    "component_ffn",
    "conv3x3",
    "cpu_capability",
    "depthwise_conv1d",
    "dropout_add",
    "dropout_add_layer_norm",
    "gather_components",
    "importance_",
    "masked_linear",
    "pack",
    "unpack",
    "use_backend",
]
