"""Shapes of block_attention and its backward, for torch.compile and torch.export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmao_kernels._library import register_fake


@register_fake("block_attention")
def _block_attention(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows, heads, _width = q.shape
    return q.new_empty(q.shape), q.new_empty((heads, rows), dtype=torch.float32)


@register_fake("block_attention_backward")
def _block_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    utterances: Tensor,
    frames: int,
    row_offsets: Tensor | None,
    column_ids: Tensor | None,
    column_offsets: Tensor | None,
    row_ids: Tensor | None,
    block: int,
    left: int,
    right: int,
    chunk: int,
    left_chunks: int,
    head_mask: Tensor | None,
    rel_pos: Tensor | None,
    content_bias: Tensor | None,
    position_bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    parameters = (rel_pos, content_bias, position_bias)
    return (
        *(x.new_empty(x.shape) for x in (q, k, v)),
        *(q.new_empty((0,) if parameter is None else parameter.shape) for parameter in parameters),
    )
