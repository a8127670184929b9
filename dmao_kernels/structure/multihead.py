"""nn.MultiheadAttention with any number of heads of its size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ElasticMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention whose number of heads may differ from embed_dim / head_dim, which PyTorch's assumes.

    It is made of one that is there, by assigning to ``__class__``. With the number of heads that it was built with
    it computes as before, PyTorch's fast path included. Without heads it contributes zeros, and returns no weights; in
    slots storage it returns them, averaged over the heads that live.
    """

    @property
    def empty(self) -> bool:
        """Whether all heads are gone."""
        return self.num_heads == 0

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
        """As nn.MultiheadAttention's; an attention mask per head is [B * heads, T, S] with the present heads."""
        if self.num_heads * self.head_dim == self.embed_dim and live_heads(self) is None:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if self.empty:
            return torch.zeros_like(query, memory_format=torch.contiguous_format), None
        return attend_with_any_heads(
            self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )


def attend_with_any_heads(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What nn.MultiheadAttention computes, with ``attention.num_heads`` heads of ``attention.head_dim``.

    An attention mask per head is [B * heads, T, S].
    """
    if is_causal and attn_mask is None:
        raise ValueError("MultiheadAttention: is_causal needs the attn_mask that it is a hint about")
    batched = query.dim() == 3
    q, k, v = _project(attention, query, key, value)
    if batched and not attention.batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    q, k, v = ((x if batched else x[None]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for x in (q, k, v))
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else _mask(attn_mask, key_padding_mask, q)
    p = attention.dropout if attention.training else 0.0
    weights = None
    if need_weights:
        scores = attention.head_dim**-0.5 * q @ k.mT
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
        y = weights @ v
        weights = _average(weights, live_heads(attention)) if average_attn_weights else weights
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=causal)
    y = F.linear(y.transpose(1, 2).flatten(2), attention.out_proj.weight, output_bias(attention))
    if not batched:
        return y[0], None if weights is None else weights[0]
    return y if attention.batch_first else y.transpose(0, 1).contiguous(), weights


def live_heads(attention: nn.Module) -> Tensor | None:
    """Which heads live, bool [heads], in slots storage; None: all."""
    return getattr(attention, "live_slots", None)


def output_bias(attention: nn.MultiheadAttention) -> Tensor | None:
    """That of the output projection: nothing where no head lives."""
    bias, live = attention.out_proj.bias, live_heads(attention)
    return bias if bias is None or live is None else torch.where(live.any(), bias, 0)


def _average(weights: Tensor, live: Tensor | None) -> Tensor:
    """Of ``weights`` [B, heads, T, S] over the heads that live."""
    if live is None:
        return weights.mean(1)
    return torch.where(live[:, None, None], weights, 0).sum(1) / live.sum().clamp(min=1)


def _project(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    if query is key is value:
        return F.linear(query, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))


def _mask(attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks, boolean (True: not seen) or added to the scores, as one of these [B or 1, heads or 1, T, S].

    q: the queries [B, heads, T, head_dim].
    """
    mask, (batch, heads), dtype = None, q.shape[:2], q.dtype
    if attention is not None:
        mask = _added(attention, dtype)
        if mask.dim() == 2:
            mask = mask[None, None]
        elif len(mask) != batch * heads:
            raise ValueError(
                f"MultiheadAttention: attn_mask must be [T, S] or [{batch} * {heads} heads, T, S], "
                f"got {list(attention.shape)}"
            )
        else:
            mask = mask.unflatten(0, (batch, heads))
    if padding is not None:
        hidden = _added(padding, dtype)
        hidden = (hidden if hidden.dim() == 2 else hidden[None])[:, None, None]
        mask = hidden if mask is None else mask + hidden
    return mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    return mask.to(dtype)
