"""Grow-and-drop as a callback of Lightning's Trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from dmao.arguments import require_kinds
from dmao.controller import GrowAndDrop
from dmao.integrations.common import attach, observe
from dmao.schedule import Schedule

_log = logging.getLogger(__name__)
# an older Lightning has not all of them
_AVERAGING = tuple(vars(callbacks).get(name, ()) for name in ("WeightAveraging", "StochasticWeightAveraging"))


class GrowAndDropCallback(Callback):
    """Makes the widths of a LightningModule part of its training; its state goes into Lightning's checkpoints.

    Trainer(callbacks=[GrowAndDropCallback(Schedule(start=0.4), total_steps=1000)])

    schedule, total_steps: when the events fall, counted in optimizer steps.
    companions: as GrowAndDrop's; averages of Lightning's WeightAveraging, EMAWeightAveraging and
        StochasticWeightAveraging, before or behind this callback, are added to them.  settings: as GrowAndDrop's.
    controller: the GrowAndDrop, once `fit` has begun, or a checkpoint of other widths was loaded to be tested.

    A checkpoint is resumed, or tested, with a freshly built module: `trainer.fit(module, ckpt_path=...)`,
    `trainer.test(module, ckpt_path=...)`. For one training, with automatic optimization and one optimizer; on several
    processes with storage="slots".
    """

    def __init__(
        self, schedule: Schedule, total_steps: int, *, companions: Sequence[nn.Module] = (), **settings: Any
    ) -> None:
        require_kinds(companions=(companions, Sequence))
        self.schedule, self.total_steps, self.settings = schedule, total_steps, settings
        self.companions = companions
        self.controller: GrowAndDrop | None = None
        self._hooked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before optimizers are made and checkpoints loaded."""
        if stage == "fit":
            self.controller = self.controller or self._adapting(pl_module)
            if self.controller.elastic.model is not pl_module:
                raise ValueError("GrowAndDrop: this callback is of another module: a new module needs a new callback")
        if self._hooked:
            return
        self._hooked, load = True, pl_module.on_load_checkpoint

        # Lightning loads the module before its callbacks; this hook of the module's is the last moment for widths.
        def load_widths_first(checkpoint: dict[str, Any]) -> None:
            self._load(pl_module, checkpoint)
            load(checkpoint)

        pl_module.on_load_checkpoint = load_widths_first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizer is there."""
        fused = any(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in trainer.optimizers)
        if trainer.scaler is not None and fused:
            raise ValueError(
                "GrowAndDrop: in 16-mixed the optimizer must not be fused: it unscales gradients in its step, behind "
                "their scoring"
            )
        _require_averages(trainer)
        if self._controller().elastic.storage == "slots":
            _place_averages(trainer, pl_module.device)
        self._controller().follow(self._companions(trainer))
        last = trainer.estimated_stepping_batches
        attach(self._controller(), trainer.optimizers, trainer.global_step, last, late=True)

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

    def _load(self, module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            if module.trainer.state.fn == TrainerFn.FITTING:
                raise ValueError("GrowAndDrop: the checkpoint was saved without this callback")
            return  # nothing is trained: a checkpoint of any origin will do, where it fits
        if self.controller is None:
            if _shapes(checkpoint["state_dict"]) == _shapes(module.state_dict()):
                return
            self.controller = self._adapting(module)
        if self.controller.elastic.storage == "tight":  # else averages have their shapes, and are loaded as they are
            self.controller.follow(self._companions(module.trainer))
        self.controller.load_state_dict(state)

    def _adapting(self, module: LightningModule) -> GrowAndDrop:
        # an average that is there already goes over to slots, and gets gates, with the module
        companions = self._companions(module.trainer)
        return GrowAndDrop(module, None, self.schedule, self.total_steps, companions=companions, **self.settings)

    def _companions(self, trainer: Trainer) -> list[nn.Module]:
        """Those that were given, and what Lightning's callbacks have made by now."""
        made = [average for average in _averages(trainer).values() if average is not None]
        return [*self.companions, *made]

    def _controller(self) -> GrowAndDrop:
        assert self.controller is not None  # made by setup
        return self.controller


def _averages(trainer: Trainer) -> dict[Callback, nn.Module | None]:
    """What Lightning's averaging callbacks average into; None where there is nothing yet."""
    averaging = [each for each in trainer.callbacks if isinstance(each, _AVERAGING)]
    return {each: getattr(each, "_average_model", None) for each in averaging}


def _require_averages(trainer: Trainer) -> None:
    """An average that is not edited along would be copied over the trained weights at the end."""
    for callback, average in _averages(trainer).items():
        if average is None:
            raise ValueError(
                f"GrowAndDrop: the average of {type(callback).__name__} must be its _average_model when the training "
                "starts, got None: leave that callback out, and give companions=[average] that you update yourself"
            )


def _place_averages(trainer: Trainer, device: torch.device) -> None:
    """Where slots are edited: StochasticWeightAveraging makes its average on the CPU, and moves it later."""
    for callback, average in _averages(trainer).items():
        if isinstance(callback, callbacks.StochasticWeightAveraging) and average is not None:
            wanted = torch.device(callback._device or device)
            if wanted.type != device.type:
                raise ValueError(
                    "GrowAndDrop: in slots storage StochasticWeightAveraging must keep its average on the model's "
                    f"device, {device}, got {wanted}: give it device=None"
                )
            average.to(device)


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}
