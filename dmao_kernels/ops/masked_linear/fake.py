"""Shapes of masked_linear and its backward, for torch.compile and torch.export."""

from __future__ import annotations

import math

from torch import Tensor

from dmao_kernels._library import register_fake


@register_fake("masked_linear")
def _masked_linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    row_offsets: Tensor | None,
    column_ids: Tensor | None,
    column_offsets: Tensor | None,
    row_ids: Tensor | None,
    block: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    rows = w.shape[0]
    tokens = math.prod(x.shape[:-1])
    out = rows // 2 if activation == "glu" else rows
    return x.new_empty((*x.shape[:-1], out)), x.new_empty((tokens if keep else 0, rows))


@register_fake("masked_linear_backward")
def _masked_linear_backward(
    grad_y: Tensor,
    x: Tensor,
    w: Tensor,
    row_offsets: Tensor | None,
    column_ids: Tensor | None,
    column_offsets: Tensor | None,
    row_ids: Tensor | None,
    block: int,
    pre_activation: Tensor,
    activation: str,
    need_x: bool,
    need_w: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else (0,)),
        w.new_empty(w.shape if need_w else (0,)),
        w.new_empty(w.shape[0] if need_b else 0),
    )
