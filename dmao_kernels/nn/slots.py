"""What layers do in slots storage: tensors have room for a capacity of components, the first of which live.

``slots`` is bool [capacity], True for the live ones, which come first; None: every component lives (tight storage).
Shapes follow from the capacity alone, and nothing waits for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.block_mask import BlockMask
from dmao_kernels.nn.linear import MaskedLinear
from dmao_kernels.ops import masked_linear


def live_list(slots: Tensor | None) -> Tensor | None:
    """The ids of the live components, filled up with the capacity: int32 [capacity]."""
    if slots is None:
        return None
    capacity = slots.shape[0]
    return torch.arange(capacity, dtype=torch.int32, device=slots.device).masked_fill(~slots, capacity)


def output_bias(bias: Tensor | None, slots: Tensor | None) -> Tensor | None:
    """The bias behind a module's output: nothing where nothing lives."""
    return bias if bias is None or slots is None else bias * slots.any()


def rows_mask(linear: MaskedLinear, slots: Tensor | None, repeats: int = 1) -> BlockMask | None:
    """The blocks of a weight [(repeats C u), d] that hold live rows."""
    if slots is None:
        return None
    lines = _blocks(slots, linear.weight.shape[0], repeats, linear.block)
    columns = -(-linear.weight.shape[1] // linear.block)
    return BlockMask.from_dense(lines[:, None].expand(-1, columns), linear.block, static=True)


def output_linear(linear: MaskedLinear, x: Tensor, slots: Tensor | None) -> Tensor:
    """The module's last layer, of weight [e, (C u)], over the blocks that hold live columns."""
    if slots is None:
        return linear(x)
    lines = _blocks(slots, linear.weight.shape[1], 1, linear.block)
    rows = -(-linear.weight.shape[0] // linear.block)
    mask = BlockMask.from_dense(lines[None].expand(rows, -1), linear.block, static=True)
    return masked_linear(x, linear.weight, output_bias(linear.bias, slots), mask, activation=linear.activation)


def _blocks(slots: Tensor, units: int, repeats: int, block: int) -> Tensor:
    """Which blocks of an axis (repeats C u) hold a live unit."""
    live = slots.repeat_interleave(units // (repeats * slots.shape[0])).repeat(repeats)
    return F.pad(live, (0, -units % block)).view(-1, block).any(1)
