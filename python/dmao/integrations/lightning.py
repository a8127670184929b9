"""Grow-and-drop as a callback of Lightning's Trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dmao.controller import GrowAndDrop
from dmao.integrations.common import attach, observe
from dmao.schedule import Schedule

_log = logging.getLogger(__name__)


class GrowAndDropCallback(Callback):
    """Makes the widths of a LightningModule part of its training; its state goes into Lightning's checkpoints.

    Trainer(callbacks=[GrowAndDropCallback(Schedule(start=0.4), total_steps=1000)])

    schedule, total_steps: when the events fall, counted in optimizer steps.  settings: as GrowAndDrop's.
    controller: the GrowAndDrop, once `fit` or another method of the Trainer has begun.

    A checkpoint is resumed, or tested, with a freshly built module: `trainer.fit(module, ckpt_path=...)`,
    `trainer.test(module, ckpt_path=...)`. With automatic optimization and one optimizer.
    """

    def __init__(self, schedule: Schedule, total_steps: int, **settings: Any) -> None:
        self.schedule, self.total_steps, self.settings = schedule, total_steps, settings
        self.controller: GrowAndDrop | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before optimizers are made and checkpoints loaded, of a training or to test one."""
        if self.controller is None:
            self.controller = GrowAndDrop(pl_module, None, self.schedule, self.total_steps, **self.settings)
            load = pl_module.on_load_checkpoint

            # Lightning loads the module before its callbacks; this hook of the module's is the last moment for widths.
            def load_widths_first(checkpoint: dict[str, Any]) -> None:
                self._load(checkpoint.get("callbacks", {}))
                load(checkpoint)

            pl_module.on_load_checkpoint = load_widths_first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizer is there."""
        attach(self._controller(), trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Gradients are complete, and unscaled."""
        observe(self._controller())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """An event falls between two steps."""
        controller = self._controller()
        if controller.due(trainer.global_step):
            _log.info("%s", controller.adapt())

    def state_dict(self) -> dict[str, Any]:
        """The controller's."""
        return {} if self.controller is None else self.controller.state_dict()

    def _load(self, callbacks: Mapping[str, Any]) -> None:
        if self.state_key not in callbacks:
            raise ValueError("GrowAndDrop: the checkpoint was saved without this callback")
        self._controller().load_state_dict(callbacks[self.state_key])

    def _controller(self) -> GrowAndDrop:
        assert self.controller is not None  # made by setup
        return self.controller
