"""Shapes of component_ffn and its backward, for torch.compile and torch.export."""

from __future__ import annotations

import math

from torch import Tensor

from dmao_kernels._library import register_fake


@register_fake("component_ffn")
def _component_ffn(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    live: Tensor | None,
    components: int,
    p: float,
    seed: Tensor | None,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    hidden = w1.shape[0]
    if live is not None:
        hidden = live.shape[0] * (hidden // components) if components else 0
    tokens = math.prod(x.shape[:-1])
    return x.new_empty((*x.shape[:-1], w2.shape[0])), x.new_empty((tokens if keep else 0, hidden))


@register_fake("component_ffn_backward")
def _component_ffn_backward(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    live: Tensor | None,
    pre_activation: Tensor,
    components: int,
    p: float,
    seed: Tensor | None,
    activation: str,
    need_x: bool,
    need_w1: bool,
    need_b1: bool,
    need_w2: bool,
    need_b2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else (0,)),
        w1.new_empty(w1.shape if need_w1 else (0,)),
        w1.new_empty(w1.shape[0] if need_b1 else 0),
        w2.new_empty(w2.shape if need_w2 else (0,)),
        w2.new_empty(w2.shape[0] if need_b2 else 0),
    )
