"""How the rows of a batch form utterances: packed [N, ...] with offsets, or padded [B, T, ...] with lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels.ops._checks import describe, has_dtype


def check_utterances(op: str, x: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> None:
    """Raises ValueError unless x [N, width] has offsets, or x [B, T, width] has lengths or nothing.

    Values are not looked at: that would wait for the device, and cannot be traced.
    """
    if offsets is not None and lengths is not None:
        raise ValueError(f"{op}: give lengths (padded rows) or offsets (packed rows), not both")
    if offsets is not None:
        if x.dim() != 2:
            raise ValueError(f"{op}: x must be [N, width] with offsets, got {list(x.shape)}")
        check_offsets(op, offsets)
    elif x.dim() != 3:
        raise ValueError(f"{op}: x must be [B, T, width] without offsets, got {list(x.shape)}")
    elif lengths is not None:
        check_lengths(op, lengths, x.shape[0])


def check_offsets(op: str, offsets: Tensor) -> None:
    """Raises ValueError unless it is int32 [B + 1]."""
    if not has_dtype(offsets, torch.int32) or offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"{op}: offsets must be int32 [B + 1], got {describe(offsets)}")


def check_lengths(op: str, lengths: Tensor, batch: int) -> None:
    """Raises ValueError unless it is int32 [B]."""
    if not has_dtype(lengths, torch.int32) or list(lengths.shape) != [batch]:
        raise ValueError(f"{op}: lengths must be int32 [{batch}], got {describe(lengths)}")


def padding(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """True at the padding of x [B, T, width], [B, T, 1]; None where there is none."""
    if lengths is None:
        return None
    return (torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[:, :, None]
