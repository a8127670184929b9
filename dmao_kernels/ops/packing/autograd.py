"""Gradients of pack and unpack: of each, the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _setup_pack(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, offsets, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.frames = x.shape[1]


def _pack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    return torch.ops.dmao.unpack(grad, offsets, ctx.frames), None, None


def _setup_unpack(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    packed, offsets, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.rows = packed.shape[0]


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    return torch.ops.dmao.pack(grad, offsets, ctx.rows), None, None


torch.library.register_autograd("dmao::pack", _pack_backward, setup_context=_setup_pack)
torch.library.register_autograd("dmao::unpack", _unpack_backward, setup_context=_setup_unpack)
