"""Elastic layers: ordinary PyTorch modules that say where their components are."""

from dmao_kernels.nn.attention import RelPosSelfAttention, SelfAttention, sinusoidal_positions
from dmao_kernels.nn.cgmlp import ConvolutionalGatingMLP
from dmao_kernels.nn.chunks import ChunkRows
from dmao_kernels.nn.conformer import ConformerBlock
from dmao_kernels.nn.convolution import ConvolutionModule
from dmao_kernels.nn.e_branchformer import EBranchformerBlock
from dmao_kernels.nn.feedforward import ACTIVATIONS, FeedForward
from dmao_kernels.nn.linear import MaskedLinear
from dmao_kernels.nn.norm import ComponentLayerNorm

__all__ = [
    "ACTIVATIONS",
    "ChunkRows",
    "ComponentLayerNorm",
    "ConformerBlock",
    "ConvolutionModule",
    "ConvolutionalGatingMLP",
    "EBranchformerBlock",
    "FeedForward",
    "MaskedLinear",
    "RelPosSelfAttention",
    "SelfAttention",
    "sinusoidal_positions",
]
