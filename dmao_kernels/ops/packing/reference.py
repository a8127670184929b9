"""pack and unpack in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _places(offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Utterance and frame of every packed row."""
    utterances = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    utterance = utterances.repeat_interleave(offsets.diff(), output_size=rows)
    return utterance, torch.arange(rows, device=offsets.device) - offsets[utterance]


def pack_reference(x: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """x [B, T, ...] -> [rows, ...], rows = offsets[-1]; differentiable and traceable."""
    return x[_places(offsets, rows)]


def unpack_reference(packed: Tensor, offsets: Tensor, frames: int) -> Tensor:
    """packed [N, ...] -> [B, frames, ...]; differentiable and traceable."""
    padded = packed.new_zeros(offsets.shape[0] - 1, frames, *packed.shape[1:])
    return padded.index_put(_places(offsets, packed.shape[0]), packed)
