"""Gradients of pack and unpack: of each, the other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmao_kernels._library import register_autograd


def _setup_pack(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, offsets, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.frames = x.shape[1]


def _pack_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    return ops.unpack(grad, offsets, ctx.frames), None, None


def _setup_unpack(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    packed, offsets, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.rows = packed.shape[0]


def _unpack_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    return ops.pack(grad, offsets, ctx.rows), None, None


register_autograd("pack", _pack_backward, setup_context=_setup_pack)
register_autograd("unpack", _unpack_backward, setup_context=_setup_unpack)
