"""Families of modules that are not ours: PyTorch's own, and those of packages, known by the paths of their classes.

Nothing is imported for them. A layout here is written for the versions in requirements/zoo.txt, with which the tests
in tests/zoo hold it against the real modules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from dmao_kernels.families import (
    Norm,
    Pointwise,
    attention_layout,
    cgmlp_layout,
    feedforward_layout,
    glu_convolution_layout,
    packed_attention_layout,
)
from dmao_kernels.layout import ComponentLayout
from dmao_kernels.structure.multihead import ElasticMultiheadAttention
from dmao_kernels.structure.register import register_family

Described = ComponentLayout | str
_HF = "transformers.models"
_ESPNET = "espnet.nets.pytorch_backend"


def _with_shared(layout: ComponentLayout, module: Any, *norms: str) -> ComponentLayout:
    """``layout`` with the parameters of these submodules, where they are there, among what no component owns."""
    found = [f"{name}.{leaf}" for name in norms for leaf, _ in getattr(module, name).named_parameters()]
    return replace(layout, shared=(*layout.shared, *found))


def _convolution(
    pointwise1: str,
    depthwise: str,
    depthwise_norm: str,
    pointwise2: str,
    kind: Norm,
    norm: str | None = None,
    pointwise: Pointwise | tuple[Pointwise, Pointwise] = "conv1d",
) -> ComponentLayout:
    return glu_convolution_layout(pointwise1, depthwise, depthwise_norm, pointwise2, norm, kind, pointwise)


# PyTorch


def _why_not_multihead(module: Any) -> str | None:
    if type(module) is not nn.MultiheadAttention and not isinstance(module, ElasticMultiheadAttention):
        return "a class derived from MultiheadAttention, whose forward may be another"
    if module.in_proj_weight is None:
        return "keys or values of another width than queries (kdim, vdim)"
    if module.bias_k is not None or module.add_zero_attn:
        return "additional keys (bias_k, add_zero_attn)"
    return None


_MULTIHEAD = ComponentLayout(
    family="packed_attention",
    tensors={"in_proj_weight": "(three C k) d", "in_proj_bias": "(three C k)", "out_proj.weight": "e (C k)"},
    output=("out_proj.weight",),
    scored="out_proj.weight",
    shared=("out_proj.bias",),
    attributes={"num_heads": "C", "out_proj.in_features": "(C k)"},
)


def _any_heads(module: nn.Module) -> None:
    if _why_not_multihead(module) is None and not isinstance(module, ElasticMultiheadAttention):
        module.__class__ = ElasticMultiheadAttention


def _without_fast_path(module: Any) -> None:
    """PyTorch's fast path of inference computes with the widths that the layer was built with."""
    module.activation_relu_or_gelu = 0


def _without_nested_tensors(module: Any) -> None:
    """They are for that fast path only."""
    module.use_nested_tensor = False


def _is_known(module: nn.Module, *methods: str) -> bool:
    """Whether PyTorch or this library wrote these methods."""
    packages = {getattr(type(module), method).__module__.partition(".")[0] for method in methods}
    return packages <= {"torch", "dmao_kernels"}


_REGISTER = "register_family(Class, layout, can_be_empty=False)"  # the residual sum stands inside


def _transformer_feed_forward(module: Any) -> Described:
    if not _is_known(module, "forward", "_ff_block"):
        known = (
            "TransformerDecoderLayer" if isinstance(module, nn.TransformerDecoderLayer) else "TransformerEncoderLayer"
        )
        return f"a class derived from {known}, whose feed-forward may be another: {_REGISTER}"
    up, down = module.linear1, module.linear2
    plain = all(isinstance(part, nn.Linear) and _is_known(part, "forward") for part in (up, down))
    if not plain or up.out_features != down.in_features:
        return f"linear1 and linear2 are no plain Linears with one width between them: {_REGISTER}"
    return feedforward_layout("linear1", "linear2", norm=None)


register_family(
    nn.MultiheadAttention, lambda module: _why_not_multihead(module) or _MULTIHEAD, returns=2, prepare=_any_heads
)
register_family(nn.TransformerEncoderLayer, _transformer_feed_forward, can_be_empty=False, prepare=_without_fast_path)
register_family(nn.TransformerEncoder, None, prepare=_without_nested_tensors)
register_family(nn.TransformerDecoderLayer, _transformer_feed_forward, can_be_empty=False)


# torchaudio


def _torchaudio_convolution(module: Any) -> ComponentLayout:
    batch = isinstance(module.sequential[3], nn.BatchNorm1d)
    parts = ("sequential.0", "sequential.2", "sequential.3", "sequential.5")
    return _convolution(*parts, "batch" if batch else "group", norm="layer_norm")


register_family(
    "torchaudio.models.conformer._FeedForwardModule", feedforward_layout("sequential.1", "sequential.4", "sequential.0")
)
register_family("torchaudio.models.conformer._ConvolutionModule", _torchaudio_convolution)


# Hugging Face transformers

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_LINEARS = ("linear_q", "linear_k", "linear_v", "linear_out")
_HF_FF = feedforward_layout("intermediate_dense", "output_dense", norm=None)


def _relative_attention(module: Any) -> Described:
    """Wav2Vec2-Conformer's and Wav2Vec2-BERT's."""
    kind = module.position_embeddings_type
    if kind == "rotary":
        return "rotary positions cut the input, whose width is fixed, in heads"
    relative = kind == "relative"
    layout = attention_layout(
        *_LINEARS,
        norm=None,
        heads="num_heads",
        pos="linear_pos" if relative else None,
        biases=("pos_bias_u", "pos_bias_v") if relative else (),
    )
    return _with_shared(layout, module, *(["distance_embedding"] if kind == "relative_key" else []))


for _name in ("Wav2Vec2", "Hubert"):
    _path = f"{_HF}.{_name.lower()}.modeling_{_name.lower()}.{_name}"
    register_family(f"{_path}Attention", attention_layout(*_PROJECTIONS, norm=None, heads="num_heads"), returns=2)
    register_family(f"{_path}FeedForward", _HF_FF)
for _file, _name, _norm, _kind in (
    ("wav2vec2_conformer", "Wav2Vec2Conformer", "batch_norm", "batch"),
    ("wav2vec2_bert", "Wav2Vec2Bert", "depthwise_layer_norm", "layer"),
):
    _path = f"{_HF}.{_file}.modeling_{_file}.{_name}"
    register_family(f"{_path}FeedForward", _HF_FF)
    register_family(f"{_path}SelfAttention", _relative_attention, returns=2)
    register_family(
        f"{_path}ConvolutionModule",
        _convolution("pointwise_conv1", "depthwise_conv", _norm, "pointwise_conv2", cast(Norm, _kind), "layer_norm"),
    )
# A decoder's attention is never emptied: its cache of keys and values counts on every layer.
register_family(
    f"{_HF}.whisper.modeling_whisper.WhisperAttention",
    attention_layout(*_PROJECTIONS, norm=None, heads="num_heads"),
    can_be_empty=False,
)
for _name in ("WhisperEncoderLayer", "WhisperDecoderLayer"):
    register_family(
        f"{_HF}.whisper.modeling_whisper.{_name}", feedforward_layout("fc1", "fc2", norm=None), can_be_empty=False
    )


# ESPnet


def _espnet_attention(module: Any) -> ComponentLayout:
    relative = hasattr(module, "linear_pos")
    layout = attention_layout(
        *_LINEARS,
        norm=None,
        heads="h",
        pos="linear_pos" if relative else None,
        biases=("pos_bias_u", "pos_bias_v") if relative else (),
    )
    return _with_shared(layout, module, "q_norm", "k_norm")


def _espnet_cgmlp(module: Any) -> Described:
    if module.csgu.linear is not None:
        return "a linear after the convolution mixes the channels of all components (use_linear_after_conv)"
    return cgmlp_layout("channel_proj1.0", "csgu.norm", "csgu.conv", "channel_proj2", norm=None, norm_kind="layer")


register_family(f"{_ESPNET}.transformer.attention.MultiHeadedAttention", _espnet_attention)
register_family(
    f"{_ESPNET}.transformer.positionwise_feed_forward.PositionwiseFeedForward",
    feedforward_layout("w_1", "w_2", norm=None),
)
register_family(
    f"{_ESPNET}.conformer.convolution.ConvolutionModule",
    _convolution("pointwise_conv1", "depthwise_conv", "norm", "pointwise_conv2", "batch"),
)
register_family("espnet2.asr.layers.cgmlp.ConvolutionalGatingMLP", _espnet_cgmlp)


# SpeechBrain


def _speechbrain_attention(module: Any) -> ComponentLayout:
    return ComponentLayout(
        family="packed_attention",
        tensors={
            "in_proj_weight": "(C three k) d",
            "linear_pos.weight": "(C k) p",
            "pos_bias_u": "C k",
            "pos_bias_v": "C k",
            **({"value_bias_weight": "(C k)"} if hasattr(module, "value_bias_weight") else {}),
            "out_proj.weight": "e (C k)",
        },
        output=("out_proj.weight",),
        scored="out_proj.weight",
        shared=("out_proj.bias",),
        attributes={"num_heads": "C", "linear_pos.out_features": "(C k)", "out_proj.in_features": "(C k)"},
    )


_BIASES = ("pos_bias_u", "pos_bias_v")


def _heads_first(module: Any) -> None:
    """Position biases are stored as [head_dim, heads], but read as [heads, head_dim]: store them so.

    States in which they are stored the other way can still be loaded.
    """
    if getattr(module, "_heads_first", False):
        return
    module._heads_first = True
    for name in _BIASES:
        bias = getattr(module, name)
        bias.data = bias.data.reshape(module.num_heads, module.head_dim)
    module.register_load_state_dict_pre_hook(_read_heads_first)


def _read_heads_first(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in _BIASES:
        if (bias := state.get(prefix + name)) is not None and bias.numel() == getattr(module, name).numel():
            state[prefix + name] = bias.reshape(getattr(module, name).shape)


register_family("speechbrain.nnet.attention.PositionalwiseFeedForward", feedforward_layout("ffn.0", "ffn.3", norm=None))
register_family(
    "speechbrain.lobes.models.transformer.Conformer.ConvolutionModule",
    _convolution("bottleneck.0", "conv", "after_conv.0", "after_conv.2", "layer", "layer_norm", ("conv1d", "linear")),
)
register_family("speechbrain.nnet.attention.RelPosMHAXL", _speechbrain_attention, returns=2, prepare=_heads_first)


# timm, torchvision


def _timm_mlp(module: Any) -> Described:
    if not isinstance(module.fc1, nn.Linear):
        return "its layers are convolutions (use_conv)"
    if any(True for _ in module.norm.parameters()):
        return "a norm runs over the hidden units of all components"
    return feedforward_layout("fc1", "fc2", norm=None)


def _timm_attention(module: Any) -> Described:
    if not hasattr(module, "attn_dim"):
        return "this version of timm takes the number of heads times their size to be the width of the model"
    if any(True for _ in module.norm.parameters()) or module.gate is not None:
        return "a norm or a gate over all heads (scale_norm, gated)"
    layout = packed_attention_layout("qkv", "proj", norm=None, heads="num_heads")
    layout = replace(layout, attributes={**layout.attributes, "attn_dim": "(C k)"})
    return _with_shared(layout, module, "q_norm", "k_norm")


register_family("timm.layers.mlp.Mlp", _timm_mlp)
register_family("timm.layers.attention.Attention", _timm_attention)
register_family("torchvision.models.vision_transformer.MLPBlock", feedforward_layout("0", "3", norm=None))
