"""nn.MultiheadAttention, nn.TransformerEncoderLayer and nn.TransformerEncoder: padding is packed away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmao_kernels.nn.residual import draw_seed, dropout_rate
from dmao_kernels.ops import (
    block_attention,
    dropout_add,
    dropout_add_layer_norm,
    masked_linear,
    pack,
    unpack,
)
from dmao_kernels.structure.multihead import ElasticMultiheadAttention, output_bias
from dmao_kernels.swaps.feedforward import feed_forward, why_not_ffn
from dmao_kernels.swaps.registry import register_swap, takes, why_not_dtype, why_not_plain


def _lengths(
    x: Tensor, batch_first: bool, padding: Tensor | None, attn_mask: Tensor | None, is_causal: bool
) -> tuple[bool, Tensor | None]:
    """Whether the operations can do it, as far as x and the masks go, and the lengths int32 [B] (None: no padding).

    They can where the padding (bool, True; or float, -inf) stands behind the frames, and the attention mask is none or
    said to be causal. Whether it stands behind them is looked up on the CPU only, where it costs no wait.
    """
    if x.dim() != 3 or not takes(x):
        return False, None
    if (attn_mask is None) == bool(is_causal):  # that causality is a hint about a mask, and alone an error
        return False, None
    if padding is None:
        return True, None
    if padding.device.type != "cpu" or torch.compiler.is_compiling():
        return False, None
    if padding.shape != (x if batch_first else x.transpose(0, 1)).shape[:2]:  # PyTorch says what is wrong
        return False, None
    masked = padding if padding.dtype == torch.bool else padding.isneginf()
    ordered = not bool((masked[:, 1:] < masked[:, :-1]).any())
    exact = padding.dtype == torch.bool or bool((masked | (padding == 0)).all())
    return ordered and exact, (~masked).sum(1, dtype=torch.int32)


def _attend(attention: nn.MultiheadAttention, x: Tensor, causal: bool, **rows: Any) -> Tensor:
    """Self-attention of ``x`` [B, T, d], or packed [N, d]; zeros of one that lost all its heads."""
    if attention.num_heads == 0:
        return torch.zeros_like(x)
    p = dropout_rate(attention, attention.dropout)
    qkv = masked_linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, attention.head_dim)).unbind(-3)
    window = (None, 0) if causal else None
    y = block_attention(q, k, v, window=window, p=p, seed=draw_seed(p, x.device), **rows)
    return masked_linear(y.flatten(-2), attention.out_proj.weight, output_bias(attention))


class FastMultiheadAttention(ElasticMultiheadAttention):
    """self-attention without weights returned, over frames with or without padding behind, causal or not."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention's."""
        possible, lengths = _lengths(query, self.batch_first, key_padding_mask, attn_mask, is_causal)
        plain = not possible or need_weights or self.empty or not query is key is value
        if plain or _why_not_form(self) is not None:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        x = query if self.batch_first else query.transpose(0, 1)
        y = _attend(self, x, attn_mask is not None, lengths=lengths)
        return y if self.batch_first else y.transpose(0, 1).contiguous(), None


class FastTransformerEncoderLayer(nn.TransformerEncoderLayer):
    """all of the layer on packed frames: attention, feed-forward, residual sums with their norms."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As nn.TransformerEncoderLayer's."""
        if _why_not_fused(self) is not None:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        batch_first = self.self_attn.batch_first
        possible, lengths = _lengths(src, batch_first, src_key_padding_mask, src_mask, is_causal)
        if not possible:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        return _on_packed_frames(src, lengths, batch_first, [self], src_mask is not None)

    def on_rows(self, x: Tensor, causal: bool, **rows: Any) -> Tensor:
        """Of ``x`` [B, T, d], or packed [N, d] with ``offsets``."""
        if self.norm_first:
            y = _attend(self.self_attn, self.norm1(x), causal, **rows)
            x, normed = self._add_and_norm(x, y, self.dropout1, self.norm2)
            p = dropout_rate(self.dropout2, self.dropout2.p)
            return dropout_add(x, self._feed_forward(normed), p=p, seed=draw_seed(p, x.device))
        _, x = self._add_and_norm(x, _attend(self.self_attn, x, causal, **rows), self.dropout1, self.norm1)
        return self._add_and_norm(x, self._feed_forward(x), self.dropout2, self.norm2)[1]

    def _feed_forward(self, x: Tensor) -> Tensor:
        return feed_forward(x, self.linear1, self.activation, self.dropout, self.linear2)

    @staticmethod
    def _add_and_norm(x: Tensor, y: Tensor, dropout: nn.Dropout, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        p = dropout_rate(dropout, dropout.p)
        return dropout_add_layer_norm(x, y, norm.weight, norm.bias, p=p, seed=draw_seed(p, x.device), eps=norm.eps)


class FastTransformerEncoder(nn.TransformerEncoder):
    """frames packed once for all layers."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As nn.TransformerEncoder's."""
        layers: list[Any] = list(self.layers)
        if any(
            why_not_plain((layer, FastTransformerEncoderLayer)) is not None or _why_not_fused(layer) is not None
            for layer in layers
        ):
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        batch_first = layers[0].self_attn.batch_first
        possible, lengths = _lengths(src, batch_first, src_key_padding_mask, mask, bool(is_causal))
        if not possible:
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        x = _on_packed_frames(src, lengths, batch_first, layers, mask is not None)
        return x if self.norm is None else self.norm(x)


def _on_packed_frames(
    src: Tensor, lengths: Tensor | None, batch_first: bool, layers: list[Any], causal: bool
) -> Tensor:
    x, rows = src if batch_first else src.transpose(0, 1), {}
    frames = x.shape[1]
    if lengths is not None:
        x, rows["offsets"] = pack(x, lengths)
    for layer in layers:
        x = layer.on_rows(x, causal, **rows)
    if lengths is not None:
        x = unpack(x, rows["offsets"], frames)
    return x if batch_first else x.transpose(0, 1).contiguous()


def _why_not_attention(attention: nn.MultiheadAttention) -> str | None:
    return _why_not_form(attention) or why_not_dtype(attention)


def _why_not_form(attention: nn.MultiheadAttention) -> str | None:
    if not attention._qkv_same_embed_dim:
        return "keys or values of another width than queries"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "additional keys (bias_k, add_zero_attn)"
    if attention.head_dim > 256:
        return f"heads of {attention.head_dim}, more than 256"
    return "dropout of everything" if attention.dropout >= 1.0 else None


def _why_not_fused(layer: nn.TransformerEncoderLayer) -> str | None:
    """Of what can change at any time, and is asked in every call."""
    attention, norms, dropouts = layer.self_attn, (layer.norm1, layer.norm2), (layer.dropout1, layer.dropout2)
    reason = why_not_plain(
        (attention, nn.MultiheadAttention, ElasticMultiheadAttention, FastMultiheadAttention),
        (attention.out_proj, nn.modules.linear.NonDynamicallyQuantizableLinear),
        *((norm, nn.LayerNorm) for norm in norms),
        *((dropout, nn.Dropout) for dropout in dropouts),
    )
    if reason is not None or (reason := _why_not_form(attention)) is not None:
        return reason
    if any(norm.bias is None for norm in norms):
        return "norms without weight or bias"
    if any(dropout.p >= 1.0 for dropout in dropouts):
        return "dropout of everything"
    return why_not_ffn(layer.linear1, layer.activation, layer.dropout, layer.linear2)


def _why_not_layer(layer: nn.TransformerEncoderLayer) -> str | None:
    return _why_not_fused(layer) or _why_not_attention(layer.self_attn) or why_not_dtype(layer)


def _why_not_encoder(encoder: nn.TransformerEncoder) -> str | None:
    reasons = (why_not_plain((layer, nn.TransformerEncoderLayer)) or _why_not_layer(layer) for layer in encoder.layers)
    return next((reason for reason in reasons if reason), None)


register_swap(nn.MultiheadAttention, FastMultiheadAttention, _why_not_attention)
register_swap(ElasticMultiheadAttention, FastMultiheadAttention, _why_not_attention)
register_swap(nn.TransformerEncoderLayer, FastTransformerEncoderLayer, _why_not_layer)
register_swap(nn.TransformerEncoder, FastTransformerEncoder, _why_not_encoder)
