"""What the gradients of the operations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def no_double_backward(op: str) -> Callable[..., None]:
    """The backward of `op`'s backward operator: an error."""

    def refuse(ops: Any, ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{op}: double backward is not supported; use the reference backend "
            "(dmao_kernels.use_backend('reference')) for second derivatives"
        )

    return refuse
