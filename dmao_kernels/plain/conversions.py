"""What `compact` makes of the layers of dmao_kernels.nn, and of attention of PyTorch's that has become elastic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dmao_kernels import nn as layers
from dmao_kernels.nn.e_branchformer import MergedBranches
from dmao_kernels.nn.residual import ResidualBlock
from dmao_kernels.plain import layers as plain
from dmao_kernels.plain.registry import Plain, empty_in_place_of, register_plain
from dmao_kernels.structure.empty import EmptyForward
from dmao_kernels.structure.multihead import ElasticMultiheadAttention


def _linear(module: layers.MaskedLinear) -> nn.Linear:
    """Without the activation; dead blocks are zeros."""
    made = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    made.weight, made.bias = module.weight, module.bias
    if (mask := module.mask) is not None:
        made.weight = nn.Parameter(torch.where(mask.elements(*module.weight.shape), module.weight.detach(), 0))
    return made


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "glu": lambda: nn.GLU(-1),
}


def _masked_linear(module: layers.MaskedLinear, convert: Plain) -> nn.Module:
    linear = _linear(module)
    return linear if module.activation == "none" else nn.Sequential(linear, _ACTIVATIONS[module.activation]())


def _component_norm(module: layers.ComponentLayerNorm, convert: Plain) -> nn.Module:
    if module.unequal_weights() is not None:
        return plain.WeightedLayerNorm(module.weight, module.bias, module.shares(), module.eps)
    made = nn.LayerNorm(module.weight.numel(), module.eps, device="meta")
    made.weight, made.bias = module.weight, module.bias
    return made


def _parts(module: nn.Module, convert: Plain, *names: str) -> dict[str, nn.Module]:
    return {name: convert(getattr(module, name)) for name in names}


def _feed_forward(module: layers.FeedForward, convert: Plain) -> nn.Module:
    return plain.FeedForward(module.dropout, _parts(module, convert, "norm", "w1", "w2"), module.activation)


def _convolution(module: layers.ConvolutionModule, convert: Plain) -> nn.Module:
    names = ("norm", "pointwise1", "depthwise", "depthwise_norm", "pointwise2")
    return plain.Convolution(module.dropout, _parts(module, convert, *names), module.chunk)


def _gating_mlp(module: layers.ConvolutionalGatingMLP, convert: Plain) -> nn.Module:
    parts = _parts(module, convert, "norm", "gate_norm", "depthwise", "linear2")
    return plain.GatingMLP(module.dropout, {**parts, "linear1": _linear(module.linear1)}, module.chunk)


def _attention(module: layers.SelfAttention, convert: Plain) -> nn.Module:
    parts = _parts(module, convert, "norm", "q", "k", "v", "out")
    kind, extra = plain.Attention, {}
    if isinstance(module, layers.RelPosSelfAttention):
        kind = plain.SinusoidAttention if module.radius is None else plain.TableAttention
        extra = dict(module.named_parameters(recurse=False))
        parts |= _parts(module, convert, "pos") if module.radius is None else {}
    visible = {"window": module.window, "chunk": module.chunk}
    made = kind(module.dropout, parts, module.heads, visible, module.attention_dropout)
    for name, parameter in extra.items():
        made.register_parameter(name, parameter)
    return made


def _multihead_attention(module: ElasticMultiheadAttention, convert: Plain) -> nn.Module:
    """PyTorch's own where the heads add up to the width, as that one's must."""
    if module.empty:
        # nn.TransformerEncoderLayer looks at the bias.
        return empty_in_place_of(module, EmptyForward(module, None, returns=2), in_proj_bias=None)
    fits = module.num_heads * module.head_dim == module.embed_dim
    module.__class__ = nn.MultiheadAttention if fits else plain.MultiheadAttention  # type: ignore[assignment]
    module.out_proj = convert(module.out_proj)  # type: ignore[assignment]  # gates stand on its weight
    return module


def _or_empty(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Branches without components contribute nothing."""
    return lambda module, convert: (
        plain.Empty(EmptyForward(module, None, returns=1), {}) if module.empty else make(module, convert)
    )


def _merge(module: MergedBranches, convert: Plain) -> nn.Module:
    names = ("attention", "cgmlp", "depthwise", "linear")
    return plain.Merge(module.dropout, _parts(module, convert, *names), module.chunk)


def _block(module: ResidualBlock, convert: Plain) -> nn.Module:
    live = {name: scale for name, scale in module.scales.items() if not getattr(module, name).empty}
    return plain.Block(_parts(module, convert, *live), live, convert(module.norm))


register_plain(layers.MaskedLinear, _masked_linear)
register_plain(layers.ComponentLayerNorm, _component_norm)
register_plain(layers.FeedForward, _or_empty(_feed_forward))
register_plain(layers.ConvolutionModule, _or_empty(_convolution))
register_plain(layers.ConvolutionalGatingMLP, _or_empty(_gating_mlp))
register_plain(layers.SelfAttention, _or_empty(_attention))
register_plain(layers.RelPosSelfAttention, _or_empty(_attention))
register_plain(ElasticMultiheadAttention, _multihead_attention)
register_plain(MergedBranches, _or_empty(_merge))
register_plain(layers.ConformerBlock, _block)
register_plain(layers.EBranchformerBlock, _block)
