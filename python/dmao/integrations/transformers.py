"""Grow-and-drop as a callback of the Trainer of Hugging Face's transformers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dmao.controller import GrowAndDrop
from dmao.integrations.common import attach, observe
from dmao.schedule import Schedule
from dmao_kernels.structure import ScoringAdamW

FILE = "grow_and_drop.pt"
_log = logging.getLogger(__name__)


class GrowAndDropCallback(TrainerCallback):
    """Makes the widths of a model part of its training; saves its state in the Trainer's checkpoint folders.

    Trainer(model, arguments, callbacks=[GrowAndDropCallback(model, Schedule(start=0.4), total_steps=1000)])

    model: as given to the Trainer.  schedule, total_steps: when the events fall, counted in optimizer steps.
    resume: the checkpoint folder that will be given to `train(resume_from_checkpoint=...)`; the Trainer loads weights
        before it calls anybody, so the freshly built model gets its widths here.
    settings: as GrowAndDrop's; on several processes, or with load_best_model_at_end, storage="slots".
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        total_steps: int,
        *,
        resume: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.controller = GrowAndDrop(model, None, schedule, total_steps, **settings)
        if resume is not None:
            self.controller.load_state_dict(torch.load(Path(resume) / FILE, map_location="cpu", weights_only=True))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer is there."""
        if args.load_best_model_at_end and self.controller.elastic.storage == "tight":
            raise ValueError(
                "GrowAndDropCallback: load_best_model_at_end needs storage='slots': at the end the model may have "
                "other widths than the best checkpoint"
            )
        attach(self.controller, [kwargs["optimizer"]], state.global_step, state.max_steps)
        scored_in_step = isinstance(self.controller.optimizer, ScoringAdamW)
        if args.fp16 and not (args.max_grad_norm or 0) > 0 and not scored_in_step:
            raise ValueError(
                f"GrowAndDropCallback: with fp16 max_grad_norm must be above 0, got {args.max_grad_norm}: an older "
                "Trainer unscales gradients before they are scored only where it clips them"
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are complete, unscaled, and clipped."""
        observe(self.controller)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An event falls between two steps."""
        if self.controller.due(state.global_step):
            _log.info("%s", self.controller.adapt())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Beside the weights, which the Trainer has saved."""
        saved = self.controller.state_dict()  # which all ranks have to ask for
        if args.should_save:
            torch.save(saved, Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE)
