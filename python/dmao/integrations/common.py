"""What the callbacks share: the optimizer, which frameworks make after the model, and when to observe."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from dmao.controller import GrowAndDrop
from dmao_kernels.structure import ScoringAdamW


def attach(controller: GrowAndDrop, optimizers: Sequence[Optimizer]) -> None:
    """Let events edit these optimizers' state, too; a ScoringAdamW among them takes the scores."""
    # accelerate's wrapper passes on state and groups, but its class hides what it wraps
    wrapped = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
    scoring = [optimizer for optimizer in wrapped if isinstance(optimizer, ScoringAdamW)]
    if len(wrapped) != 1:
        raise ValueError(f"GrowAndDrop: one optimizer is expected, got {len(wrapped)}")
    controller.optimizer = wrapped[0]
    for optimizer in scoring:
        optimizer.scores = controller.scores


def observe(controller: GrowAndDrop) -> None:
    """Observe, unless the optimizer does that in its step."""
    if not isinstance(controller.optimizer, ScoringAdamW):
        controller.observe()
