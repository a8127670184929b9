"""What the callbacks share: the optimizer, which frameworks make after the model, and when to observe."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from dmao.controller import GrowAndDrop
from dmao_kernels.structure import ScoringAdamW


def attach(controller: GrowAndDrop, optimizers: Sequence[Optimizer]) -> None:
    """Let events edit the optimizer's state, too; a ScoringAdamW takes the scores.

    Raises ValueError unless there is one optimizer.
    """
    if len(optimizers) != 1:
        raise ValueError(f"GrowAndDrop: one optimizer is expected, got {len(optimizers)}")
    # accelerate's wrapper passes on state and groups, but its class hides what it wraps
    optimizer = getattr(optimizers[0], "optimizer", optimizers[0])
    controller.optimizer = optimizer
    if isinstance(optimizer, ScoringAdamW):
        optimizer.scores = controller.scores


def observe(controller: GrowAndDrop) -> None:
    """Observe, unless the optimizer does that in its step."""
    if not isinstance(controller.optimizer, ScoringAdamW):
        controller.observe()
