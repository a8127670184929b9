"""What the callbacks share: the optimizer, which frameworks make after the model, and when to observe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from dmao.controller import GrowAndDrop
from dmao.distributed import several
from dmao.optimizers import require_optimizers
from dmao_kernels.structure import ScoringAdamW


def attach(
    controller: GrowAndDrop, optimizers: Sequence[Optimizer], step: int, last: float, *, late: bool = False
) -> None:
    """Let events edit the optimizer's state, too; a ScoringAdamW takes the scores. To be called before the first step.

    step: at which the training begins.  last: at which it ends, as far as that is known.  late: whether checkpoints may
    be saved between a step of the optimizer and the callback's look at it.

    Raises ValueError unless there is one optimizer, of the controller's model, with gates that do not decay; where
    step or last are not the controller's; and on several processes in tight storage.
    """
    if len(optimizers) != 1:
        raise ValueError(f"GrowAndDrop: one optimizer is expected, got {len(optimizers)}")
    # accelerate's wrapper passes on state and groups, but its class hides what it wraps; others have state of their own
    inside: Any = getattr(optimizers[0], "optimizer", None)
    optimizer: Optimizer = inside if getattr(inside, "state", None) is optimizers[0].state else optimizers[0]
    require_optimizers(optimizer, controller.elastic)
    _require_gates(controller, optimizer)
    _require_steps(controller, step, last, late)
    if several() and controller.elastic.storage == "tight":
        raise ValueError(
            "GrowAndDrop: on several processes this callback needs storage='slots': DistributedDataParallel does not "
            "know of new shapes, and the frameworks do not wrap the model anew after an event"
        )
    controller.optimizer = optimizer
    if isinstance(optimizer, ScoringAdamW):
        optimizer.scores = controller.scores


def observe(controller: GrowAndDrop) -> None:
    """Observe, unless the optimizer does that in its step."""
    if not isinstance(controller.optimizer, ScoringAdamW):
        controller.observe()


def _require_gates(controller: GrowAndDrop, optimizer: Optimizer) -> None:
    """Weight decay would pull every gate, and with it the module's output, towards nothing."""
    decays = {id(p): group.get("weight_decay", 0) for group in optimizer.param_groups for p in group["params"]}
    gates = controller.gates.parameters() if controller.gates else ()
    if any(gate.requires_grad and decays.get(id(gate)) != 0 for gate in gates):
        raise ValueError(
            "GrowAndDrop: with metric='gate' the optimizer must hold the gates, which are the parameters whose names "
            "end in '.gate', in a group with weight_decay=0"
        )


def _require_steps(controller: GrowAndDrop, step: int, last: float, late: bool) -> None:
    if step != controller.step and not (late and step == controller.step + 1):
        raise ValueError(
            f"GrowAndDrop: the training begins at step {step}, but the callback is at step {controller.step}: a new "
            "training needs a new model and a new callback, a resumed one the callback's state (transformers: resume=)"
        )
    if controller.total_steps < last < math.inf:
        raise ValueError(
            f"GrowAndDrop: total_steps must be at least {last:.0f}, which the training has, got "
            f"{controller.total_steps}: or end the training there (max_steps)"
        )
