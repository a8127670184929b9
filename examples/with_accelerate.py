"""Grow-and-drop with Hugging Face's Accelerator; `checkpoint` is a folder that it has saved."""

import torch
from accelerate import Accelerator
from dmao.controller import GrowAndDrop
from dmao.integrations.accelerate import checkpoint_with
from dmao.schedule import Schedule

from dmao_kernels.nn import ConformerBlock


def main(folder, checkpoint=None, steps=range(1, 41), total=40):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Sequential(*(ConformerBlock(16, heads=4, head_dim=4) for _ in range(2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    controller = GrowAndDrop(model, optimizer, Schedule(start=0.3, end=0.7, events=2), total)
    checkpoint_with(accelerator, controller)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    if checkpoint:
        accelerator.load_state(checkpoint)
    for index in range(2 * steps[0] - 1, 2 * steps[-1] + 1):
        x = torch.randn(4, 20, 16, generator=torch.Generator().manual_seed(index))
        with accelerator.accumulate(prepared):
            accelerator.backward((prepared(x) - x.roll(1, dims=1)).square().mean())
            if accelerator.sync_gradients:
                accelerator.unscale_gradients()  # in fp16
                controller.observe()
            wrapped.step()
            wrapped.zero_grad()
        if accelerator.sync_gradients and controller.due((index + 1) // 2):
            print(controller.adapt())
    accelerator.save_state(folder)
    return model, controller


if __name__ == "__main__":
    main("runs/accelerate")
