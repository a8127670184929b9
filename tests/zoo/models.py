"""Models of real packages, with random weights, and an input for each. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Output = Callable[[Any], Tensor]
PADDED = 20  # frames less than the longest that the other utterance has


@dataclass(frozen=True)
class Size:
    width: int = 96
    heads: int = 4
    hidden: int = 384
    layers: int = 2
    frames: int = 96
    dropout: float = 0.0


Build = Callable[[Size], nn.Module]
SMALL, REAL = Size(), Size(256, 4, 1024, 4, 200, 0.1)


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    build: makes it.  inputs: arguments of its forward.  output: the tensor to look at in what it returns.
    elastic: how many elastic modules of each family a layer has.  discovered: not by families, but by a run.
    """

    name: str
    build: Build
    inputs: Callable[[Size], tuple[Any, ...]]
    elastic: dict[str, int]
    output: Output = field(default=lambda y: y)
    discovered: bool = False


def _random(*shape: int) -> tuple[Tensor]:
    return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(5)),)


def _frames(s: Size) -> tuple[Tensor]:
    return _random(s.frames, s.width)


def _ragged(s: Size) -> tuple[Tensor, Tensor]:
    return (*_frames(s), torch.tensor([s.frames, s.frames - PADDED]))


def _full(s: Size) -> tuple[Tensor, Tensor]:
    """torchaudio's convolutions read what is behind an utterance, of which `accelerate` does not promise anything."""
    return (*_frames(s), torch.tensor([s.frames, s.frames]))


def _transformer(s: Size) -> nn.Module:
    layer = nn.TransformerEncoderLayer(s.width, s.heads, s.hidden, s.dropout, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, s.layers, enable_nested_tensor=False)


def _torchaudio(**options: Any) -> Build:
    def build(s: Size) -> nn.Module:
        from torchaudio.models import Conformer

        return Conformer(s.width, s.heads, s.hidden, s.layers, 15, dropout=s.dropout, **options)

    return build


def _huggingface(name: str, sizes: Callable[[Size], dict[str, Any]], **options: Any) -> Build:
    def build(s: Size) -> nn.Module:
        import transformers

        return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes(s), **options))

    return build


def _hidden(s: Size) -> dict[str, Any]:
    return {
        "hidden_size": s.width,
        "num_attention_heads": s.heads,
        "intermediate_size": s.hidden,
        "num_hidden_layers": s.layers,
    }


def _speech(s: Size) -> dict[str, Any]:
    rates = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "conformer_conv_dropout")
    return {
        **_hidden(s),
        "conv_dim": (32, 32, 32),
        "conv_stride": (5, 4, 4),
        "conv_kernel": (10, 8, 4),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "feature_projection_input_dim": s.width,
        **dict.fromkeys(rates, s.dropout),
    }


def _text(s: Size) -> dict[str, Any]:
    return {**_hidden(s), "vocab_size": 50}


def _bert(s: Size) -> dict[str, Any]:
    return {**_text(s), "hidden_dropout_prob": s.dropout, "attention_probs_dropout_prob": s.dropout}


def _whisper(s: Size) -> nn.Module:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(
        transformers.WhisperConfig(
            d_model=s.width,
            encoder_attention_heads=s.heads,
            encoder_ffn_dim=s.hidden,
            encoder_layers=s.layers,
            num_mel_bins=s.width,
            max_source_positions=s.frames // 2,
            dropout=s.dropout,
        )
    )


def _espnet(kind: str, **options: Any) -> Build:
    def build(s: Size) -> nn.Module:
        if kind == "conformer":
            from espnet2.asr.encoder.conformer_encoder import ConformerEncoder as Encoder
        else:
            from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder as Encoder
        widths = {"cgmlp_linear_units": s.hidden} if kind == "e_branchformer" else {}
        return Encoder(
            s.width,
            output_size=s.width,
            attention_heads=s.heads,
            linear_units=s.hidden,
            num_blocks=s.layers,
            input_layer="linear",
            dropout_rate=s.dropout,
            positional_dropout_rate=s.dropout,
            attention_dropout_rate=s.dropout,
            **widths,
            **options,
        )

    return build


def _speechbrain(s: Size) -> nn.Module:
    from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
    from speechbrain.nnet.attention import RelPosEncXL

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = RelPosEncXL(s.width)
            self.encoder = ConformerEncoder(s.layers, s.width, s.hidden, s.heads, 15, dropout=s.dropout)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x, pos_embs=self.positions(x))[0]

    return Encoder()


def _t5(s: Size) -> nn.Module:
    import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=s.width,
            num_heads=s.heads,
            d_kv=s.width // s.heads,
            d_ff=s.hidden,
            num_layers=s.layers,
            vocab_size=50,
            feed_forward_proj="gated-gelu",
            dropout_rate=s.dropout,
        )
    )


def _timm(s: Size) -> nn.Module:
    import timm

    return timm.models.vision_transformer.VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_dim=s.width,
        depth=s.layers,
        num_heads=s.heads,
        num_classes=10,
        pos_drop_rate=s.dropout,
        proj_drop_rate=s.dropout,
    )


def _torchvision(s: Size) -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, s.layers, s.heads, s.width, s.hidden, s.dropout, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zero as built: everything before it would be without gradient
    return model


def _first(y: Any) -> Tensor:
    return y[0]


def _valid(y: Any) -> Tensor:
    """What is computed for padding is not defined."""
    frames = y[0].shape[1]
    return y[0][torch.arange(frames) < torch.tensor([[frames], [frames - PADDED]])]


def _images(s: Size) -> tuple[Tensor]:
    return _random(3, 64, 64)


def _tokens(s: Size) -> tuple[Tensor]:
    return (torch.randint(50, (2, s.frames), generator=torch.Generator().manual_seed(5)),)


def _wave(s: Size) -> tuple[Tensor]:
    return _random(80 * s.frames)


_CONFORMER = {"feedforward": 2, "glu_convolution": 1, "attention": 1}
_TRANSFORMER = {"feedforward": 1, "attention": 1}
_PACKED = {"feedforward": 1, "packed_attention": 1}
_PACKED_CONFORMER = {"feedforward": 2, "glu_convolution": 1, "packed_attention": 1}

ZOO = (
    Entry("nn.TransformerEncoder", _transformer, _frames, _PACKED),
    Entry("torchaudio Conformer", _torchaudio(), _full, _PACKED_CONFORMER, _first),
    Entry(
        "torchaudio Conformer, GroupNorm",
        _torchaudio(use_group_norm=True, convolution_first=True),
        _full,
        _PACKED_CONFORMER,
        _first,
    ),
    Entry("HF Wav2Vec2", _huggingface("Wav2Vec2", _speech), _wave, _TRANSFORMER, _first),
    Entry("HF HuBERT", _huggingface("Hubert", _speech), _wave, _TRANSFORMER, _first),
    Entry(
        "HF Wav2Vec2-Conformer",
        _huggingface("Wav2Vec2Conformer", _speech, conv_depthwise_kernel_size=15),
        _wave,
        _CONFORMER,
        _first,
    ),
    Entry(
        "HF Wav2Vec2-BERT",
        _huggingface("Wav2Vec2Bert", _speech, conv_depthwise_kernel_size=15),
        _frames,
        _CONFORMER,
        _first,
    ),
    Entry("HF Whisper encoder", _whisper, lambda s: _random(s.width, s.frames), _TRANSFORMER, _first),
    Entry(
        "ESPnet Conformer",
        _espnet("conformer", cnn_module_kernel=15, macaron_style=True, rel_pos_type="latest"),
        _ragged,
        _CONFORMER,
        _valid,
    ),
    Entry(
        "ESPnet E-Branchformer",
        _espnet("e_branchformer", use_ffn=True, macaron_ffn=True, rel_pos_type="latest"),
        _ragged,
        {"feedforward": 2, "attention": 1, "cgmlp": 1},
        _valid,
    ),
    Entry("SpeechBrain Conformer", _speechbrain, _frames, _PACKED_CONFORMER),
    Entry("timm ViT", _timm, _images, _PACKED),
    Entry("torchvision ViT", _torchvision, _images, _PACKED),
    Entry(
        "HF BERT (discovered)",
        _huggingface("Bert", _bert),
        _tokens,
        {"feedforward": 1},
        _first,
        discovered=True,
    ),
    Entry("HF Llama (discovered)", _huggingface("Llama", _text), _tokens, {"gated": 1}, _first, discovered=True),
    Entry("HF T5 encoder (discovered)", _t5, _tokens, {"gated": 1}, _first, discovered=True),
)
