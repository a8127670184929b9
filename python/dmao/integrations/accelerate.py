"""Grow-and-drop in the checkpoints of Hugging Face's Accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from dmao.controller import GrowAndDrop

FILE = "grow_and_drop.pt"


def checkpoint_with(accelerator: Accelerator, controller: GrowAndDrop) -> None:
    """Let `accelerator.save_state` save the controller, and `load_state` give the model its widths before its weights.

    Make the controller of the model and the optimizer as they are before `accelerator.prepare`, and observe where
    `accelerator.sync_gradients` says that gradients are complete; in fp16 behind `accelerator.unscale_gradients()`, or
    behind `accelerator.clip_grad_norm_`, which does that too, since until then they are scaled.
    """

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        state = controller.state_dict()  # which all ranks have to ask for
        if accelerator.is_main_process:
            torch.save(state, Path(folder) / FILE)

    def load(models: list[Any], folder: str) -> None:
        controller.load_state_dict(torch.load(Path(folder) / FILE, map_location="cpu", weights_only=True))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
