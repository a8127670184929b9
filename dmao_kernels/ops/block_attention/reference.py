"""block_attention in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels.block_mask import BlockMask
from dmao_kernels.ops._philox import kept


def block_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    block_mask: BlockMask | None = None,
    window: tuple[int | None, int | None] | None = None,
    chunk: tuple[int, int | None] | None = None,
    head_mask: Tensor | None = None,
    rel_pos: Tensor | None = None,
    content_bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The contract of `block_attention`, for any dtype and device; differentiable and traceable.

    Packed rows are one long sequence, in which utterances do not see each other. bfloat16 is computed in
    float32, as PyTorch's own plain attention does.
    """
    shape, dtype = q.shape, q.dtype
    utterance, position, valid = _rows(q, lengths, offsets)
    live = valid[..., None, None]
    if head_mask is not None:
        live = live & head_mask[:, None]
        # Nothing of a dead head is read: neither its values nor its gradients may be NaN.
        rel_pos = None if rel_pos is None else torch.where(head_mask[:, None], _by_head(rel_pos), 0)
        content_bias = None if content_bias is None else torch.where(head_mask[:, None], content_bias, 0)
        position_bias = None if position_bias is None else torch.where(head_mask[:, None], position_bias, 0)
    q, k, v = (_wide(torch.where(live, x.reshape(*valid.shape, *x.shape[-2:]), 0)) for x in (q, k, v))

    scores = torch.einsum("bihd,bjhd->bhij", _plus(q, content_bias), k)
    if rel_pos is not None:
        distances = torch.einsum("bihd,nhd->bhin", _plus(q, position_bias), _wide(_by_head(rel_pos)))
        reach = rel_pos.shape[0] // 2
        index = (reach + position[None, :] - position[:, None]).clamp(0, 2 * reach)
        scores = scores + distances.gather(-1, index.expand_as(scores))
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)

    visible = visible_keys(position, block_mask, window, chunk) & valid[:, None, :] & valid[:, :, None]
    visible = (visible & (utterance[:, None, :] == utterance[:, :, None]))[:, None]
    weights = _softmax(scores, visible)
    if p > 0 and seed is not None:
        head = torch.arange(scores.shape[1], device=q.device)[:, None, None]
        keep = kept(seed, position[:, None], position[None, :], p, utterance[:, None, :, None], head)
        weights = torch.where(keep, weights / (1 - p), 0)
    out = torch.einsum("bhij,bjhd->bihd", weights, v).to(dtype)
    return torch.where(live, out, 0).reshape(shape)


def _rows(q: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Utterance [b, t], position within it [t] and validity [b, t] of every row; packed rows have b = 1."""
    if offsets is not None:
        row = torch.arange(q.shape[0], device=q.device)
        offsets = offsets.long()
        utterance = torch.searchsorted(offsets[1:], row, right=True)
        return utterance[None], row - offsets[utterance], torch.ones_like(utterance, dtype=torch.bool)[None]
    batch, frames = q.shape[:2]
    position = torch.arange(frames, device=q.device)
    utterance = torch.arange(batch, device=q.device)[:, None].expand(batch, frames)
    valid = torch.ones_like(utterance, dtype=torch.bool) if lengths is None else position < lengths[:, None]
    return utterance, position, valid


def visible_keys(
    position: Tensor,
    block_mask: BlockMask | None,
    window: tuple[int | None, int | None] | None,
    chunk: tuple[int, int | None] | None,
) -> Tensor:
    """bool [t, t]: which key (second axis) each query sees by its position alone."""
    query, key = position[:, None], position[None, :]
    visible = torch.ones(query.shape[0], query.shape[0], dtype=torch.bool, device=position.device)
    left, right = window or (None, None)
    if left is not None:
        visible = visible & (key >= query - left)
    if right is not None:
        visible = visible & (key <= query + right)
    if chunk is not None:
        size, left_chunks = chunk
        visible = visible & (key // size <= query // size)
        if left_chunks is not None:
            visible = visible & (key // size >= query // size - left_chunks)
    if block_mask is not None:
        visible = visible & block_mask.to_dense()[query // block_mask.block, key // block_mask.block]
    return visible


def _softmax(scores: Tensor, visible: Tensor) -> Tensor:
    """Over the visible keys; zeros where a query sees none."""
    return scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~visible, 0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _plus(q: Tensor, bias: Tensor | None) -> Tensor:
    return q if bias is None else q + _wide(bias)


def _by_head(rel_pos: Tensor) -> Tensor:
    """rel_pos as [2R + 1, H or 1, D]."""
    return rel_pos if rel_pos.dim() == 3 else rel_pos[:, None]
