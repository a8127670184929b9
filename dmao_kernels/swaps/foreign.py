"""Feed-forward modules of packages, known by the paths of their classes: one operation, as in nn.Sequential."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from dmao_kernels.swaps.feedforward import feed_forward, why_not_ffn
from dmao_kernels.swaps.registry import class_path, register_named_swap, takes, why_not_dtype, why_not_plain


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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the class's own."""
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or not takes(x) or _why_not_fused(self) is not None:
            return super().forward(*args, **kwargs)
        y = feed_forward(x, *_ffn(self))
        last = _parts(self).last
        return y if last is None else getattr(self, last)(y)


def _ffn(module: Any) -> tuple[Any, Any, Any, Any]:
    up, activation, dropout, down = (getattr(module, name) for name in _parts(module)[:4])
    return up, activation, dropout, down


def _why_not_fused(module: Any) -> str | None:
    norm = getattr(module, "norm", None)  # timm's, between dropout and the second Linear
    if norm is not None and why_not_plain((norm, nn.Identity)) is not None:
        return "a norm runs over the hidden units"
    return why_not_ffn(*_ffn(module))


def _why_not(module: Any) -> str | None:
    return _why_not_fused(module) or why_not_dtype(module)


for _path in _PARTS:
    register_named_swap(_path, _FastFeedForward, _why_not)
