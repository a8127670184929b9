"""Small models of real packages, with random weights, and an input for each. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Output = Callable[[Any], Tensor]
D, HEADS, HIDDEN, LAYERS, FRAMES = 96, 4, 384, 2, 96


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    build: makes it.  inputs: arguments of its forward.  output: the tensor to look at in what it returns.
    elastic: how many elastic modules of each family it has.  discovered: not by families, but by a run.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    elastic: dict[str, int]
    output: Output = field(default=lambda y: y)
    discovered: bool = False


def _frames(*shape: int) -> Tensor:
    return torch.randn(2, *(shape or (FRAMES, D)), generator=torch.Generator().manual_seed(5))


_LENGTHS = torch.tensor([FRAMES, FRAMES - 20])
# torchaudio's convolutions read the frames behind an utterance, of which `accelerate` does not promise anything.
_FULL_LENGTHS = torch.tensor([FRAMES, FRAMES])


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, HEADS, HIDDEN, 0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


def _torchaudio(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchaudio.models import Conformer

        return Conformer(D, HEADS, HIDDEN, LAYERS, 15, **options)

    return build


def _huggingface(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))

    return build


_SPEECH = {
    "hidden_size": D,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
_NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "conformer_conv_dropout"), 0.0
)


def _whisper() -> nn.Module:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(
        transformers.WhisperConfig(
            d_model=D,
            encoder_attention_heads=HEADS,
            encoder_ffn_dim=HIDDEN,
            encoder_layers=LAYERS,
            num_mel_bins=D,
            max_source_positions=FRAMES // 2,
            dropout=0.0,
        )
    )


def _espnet(kind: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if kind == "conformer":
            from espnet2.asr.encoder.conformer_encoder import ConformerEncoder as Encoder
        else:
            from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder as Encoder
        return Encoder(
            D,
            output_size=D,
            attention_heads=HEADS,
            linear_units=HIDDEN,
            num_blocks=LAYERS,
            input_layer="linear",
            dropout_rate=0.0,
            positional_dropout_rate=0.0,
            attention_dropout_rate=0.0,
            **options,
        )

    return build


def _speechbrain() -> nn.Module:
    from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
    from speechbrain.nnet.attention import RelPosEncXL

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = RelPosEncXL(D)
            self.encoder = ConformerEncoder(LAYERS, D, HIDDEN, HEADS, 15, dropout=0.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x, pos_embs=self.positions(x))[0]

    return Encoder()


_TEXT = {
    "hidden_size": D,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "vocab_size": 50,
}


def _t5() -> nn.Module:
    import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=D,
            num_heads=HEADS,
            d_kv=D // HEADS,
            d_ff=HIDDEN,
            num_layers=LAYERS,
            vocab_size=50,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def _timm() -> nn.Module:
    import timm

    return timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=D, depth=LAYERS, num_heads=HEADS, num_classes=10
    )


def _torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, LAYERS, HEADS, D, HIDDEN, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zero as built: everything before it would be without gradient
    return model


def _first(y: Any) -> Tensor:
    return y[0]


def _valid(y: Any) -> Tensor:
    """What is computed for padding is not defined."""
    return y[0][torch.arange(FRAMES) < _LENGTHS[:, None]]


def _images() -> tuple[Tensor]:
    return (_frames(3, 64, 64),)


def _tokens() -> tuple[Tensor]:
    return (torch.randint(50, (2, FRAMES), generator=torch.Generator().manual_seed(5)),)


def _wave() -> tuple[Tensor]:
    return (_frames(80 * FRAMES),)


_CONFORMER = {"feedforward": 2 * LAYERS, "glu_convolution": LAYERS, "attention": LAYERS}
_TRANSFORMER = {"feedforward": LAYERS, "attention": LAYERS}
_PACKED = {"feedforward": LAYERS, "packed_attention": LAYERS}
_PACKED_CONFORMER = {"feedforward": 2 * LAYERS, "glu_convolution": LAYERS, "packed_attention": LAYERS}

ZOO = (
    Entry("nn.TransformerEncoder", _transformer, lambda: (_frames(),), _PACKED),
    Entry("torchaudio Conformer", _torchaudio(), lambda: (_frames(), _FULL_LENGTHS), _PACKED_CONFORMER, _first),
    Entry(
        "torchaudio Conformer, GroupNorm",
        _torchaudio(use_group_norm=True, convolution_first=True),
        lambda: (_frames(), _FULL_LENGTHS),
        _PACKED_CONFORMER,
        _first,
    ),
    Entry("HF Wav2Vec2", _huggingface("Wav2Vec2", **_SPEECH, **_NO_DROPOUT), _wave, _TRANSFORMER, _first),
    Entry("HF HuBERT", _huggingface("Hubert", **_SPEECH, **_NO_DROPOUT), _wave, _TRANSFORMER, _first),
    Entry(
        "HF Wav2Vec2-Conformer",
        _huggingface("Wav2Vec2Conformer", conv_depthwise_kernel_size=15, **_SPEECH, **_NO_DROPOUT),
        _wave,
        _CONFORMER,
        _first,
    ),
    Entry(
        "HF Wav2Vec2-BERT",
        _huggingface(
            "Wav2Vec2Bert", feature_projection_input_dim=D, conv_depthwise_kernel_size=15, **_SPEECH, **_NO_DROPOUT
        ),
        lambda: (_frames(),),
        _CONFORMER,
        _first,
    ),
    Entry("HF Whisper encoder", _whisper, lambda: (_frames(D, FRAMES),), _TRANSFORMER, _first),
    Entry(
        "ESPnet Conformer",
        _espnet("conformer", cnn_module_kernel=15, macaron_style=True, rel_pos_type="latest"),
        lambda: (_frames(), _LENGTHS),
        _CONFORMER,
        _valid,
    ),
    Entry(
        "ESPnet E-Branchformer",
        _espnet("e_branchformer", cgmlp_linear_units=HIDDEN, use_ffn=True, macaron_ffn=True, rel_pos_type="latest"),
        lambda: (_frames(), _LENGTHS),
        {"feedforward": 2 * LAYERS, "attention": LAYERS, "cgmlp": LAYERS},
        _valid,
    ),
    Entry("SpeechBrain Conformer", _speechbrain, lambda: (_frames(),), _PACKED_CONFORMER),
    Entry("timm ViT", _timm, _images, _PACKED),
    Entry("torchvision ViT", _torchvision, _images, _PACKED),
    Entry(
        "HF BERT (discovered)",
        _huggingface("Bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **_TEXT),
        _tokens,
        {"feedforward": LAYERS},
        _first,
        discovered=True,
    ),
    Entry("HF Llama (discovered)", _huggingface("Llama", **_TEXT), _tokens, {"gated": LAYERS}, _first, discovered=True),
    Entry("HF T5 encoder (discovered)", _t5, _tokens, {"gated": LAYERS}, _first, discovered=True),
)
