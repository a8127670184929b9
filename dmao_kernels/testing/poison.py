"""NaN poison: memory around and inside tensors that shows when a kernel reads or writes what it must not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_MARGIN = 64  # elements on each side: one 512-bit register of float32 four times over


class Poison:
    """Places tensors between margins of NaN.

    A read beyond the tensor turns results into NaN; a write beyond it is found by `check`.

        poison = Poison()
        y = op(poison.around(x))
        poison.check()
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def around(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of a float tensor, with NaN before its first and after its last element."""
        buffer = torch.full((tensor.numel() + 2 * _MARGIN,), torch.nan, dtype=tensor.dtype, device=tensor.device)
        inside = buffer[_MARGIN : _MARGIN + tensor.numel()].view(tensor.shape)
        inside.copy_(tensor.detach())
        self._buffers.append((buffer, inside))
        return inside.requires_grad_(tensor.requires_grad)

    def check(self) -> None:
        """Asserts that nothing was written into the margins."""
        for buffer, inside in self._buffers:
            margins = torch.cat([buffer[:_MARGIN], buffer[_MARGIN + inside.numel() :]])
            assert margins.isnan().all(), f"written outside of a tensor of shape {list(inside.shape)}"


@contextmanager
def nan_filled_empty() -> Iterator[None]:
    """Fills what torch.empty returns (to kernels too) with NaN, so that reading unwritten memory shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        settings.fill_uninitialized_memory = fill
