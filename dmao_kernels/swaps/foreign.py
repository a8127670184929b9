"""Feed-forward modules of packages, known by the paths of their classes: one operation, as in nn.Sequential."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from dmao_kernels.swaps.feedforward import activation_name, feed_forward
from dmao_kernels.swaps.registry import class_path, register_named_swap, takes, why_not_plain


class _Parts(NamedTuple):
    """Names of submodules, in the order in which they are applied; ``last`` is what follows."""

    up: str
    activation: str
    dropout: str
    down: str
    last: str | None


_HF = _Parts("intermediate_dense", "intermediate_act_fn", "intermediate_dropout", "output_dense", "output_dropout")
_PARTS = {
    "transformers.models.wav2vec2.modeling_wav2vec2.Wav2Vec2FeedForward": _HF,
    "transformers.models.hubert.modeling_hubert.HubertFeedForward": _HF,
    "transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer.Wav2Vec2ConformerFeedForward": _HF,
    "transformers.models.wav2vec2_bert.modeling_wav2vec2_bert.Wav2Vec2BertFeedForward": _HF,
    "espnet.nets.pytorch_backend.transformer.positionwise_feed_forward.PositionwiseFeedForward": _Parts(
        "w_1", "activation", "dropout", "w_2", None
    ),
    "timm.layers.mlp.Mlp": _Parts("fc1", "act", "drop1", "fc2", "drop2"),
    "torchvision.models.vision_transformer.MLPBlock": _Parts("0", "1", "2", "3", "4"),
}


def _parts(module: nn.Module) -> _Parts:
    return next(parts for kind in type(module).__mro__ if (parts := _PARTS.get(class_path(kind))) is not None)


class _FastFeedForward(nn.Module):
    """Linear, activation, dropout, Linear as one operation."""

    def forward(self, x: Tensor) -> Tensor:
        """As the class's own."""
        if not takes(x):
            return super().forward(x)
        parts = _parts(self)
        up, activation, dropout, down = (getattr(self, name) for name in parts[:4])
        y = feed_forward(x, up, activation_name(activation) or "", dropout, down)
        return y if parts.last is None else getattr(self, parts.last)(y)


def _why_not(module: Any) -> str | None:
    up, activation, dropout, down = (getattr(module, name) for name in _parts(module)[:4])
    if activation_name(activation) is None:
        return "an activation other than ReLU, GELU and SiLU"
    if any(True for _ in getattr(module, "norm", nn.Identity()).parameters()):
        return "a norm runs over the hidden units"
    reasons = (why_not_plain(up, nn.Linear), why_not_plain(dropout, nn.Dropout), why_not_plain(down, nn.Linear))
    return next((reason for reason in reasons if reason), None) or (
        "dropout of everything" if dropout.p >= 1.0 else None
    )


for _path in _PARTS:
    register_named_swap(_path, _FastFeedForward, _why_not)
