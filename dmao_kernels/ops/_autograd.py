"""What the gradients of the operations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def no_double_backward(op: str) -> Callable[..., None]:
    """The backward of `op`'s backward operator: an error."""

    def refuse(ops: Any, ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{op}: double backward is not supported; use the reference backend "
            "(dmao_kernels.use_backend('reference')) for second derivatives"
        )

    return refuse


def changed_in_place(tensors: Sequence[Tensor]) -> None:
    """Counts up their versions, so that a graph which still needs the old values notices."""
    torch.autograd.graph.increment_version(list(tensors))
