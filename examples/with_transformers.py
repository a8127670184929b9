"""Grow-and-drop with Hugging Face's Trainer; `checkpoint` is a folder that it has saved."""

import torch
from dmao.integrations.transformers import GrowAndDropCallback
from dmao.schedule import Schedule
from transformers import Trainer, TrainingArguments

from dmao_kernels.nn import ConformerBlock


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(*(ConformerBlock(16, heads=4, head_dim=4) for _ in range(2)))

    def forward(self, x, labels):
        y = self.blocks(x)
        return {"loss": (y - labels).square().mean(), "logits": y}


def main(folder, checkpoint=None, steps=40, total=40, **options):
    model, x = Model(), torch.randn(320, 20, 16, generator=torch.Generator().manual_seed(0))
    data = [{"x": frames, "labels": frames.roll(1, dims=0)} for frames in x]
    adapt = GrowAndDropCallback(model, Schedule(start=0.3, end=0.7, events=2), total_steps=total, resume=checkpoint)
    arguments = TrainingArguments(folder, max_steps=steps, save_steps=steps, learning_rate=1e-2, **options)
    Trainer(model, arguments, train_dataset=data, callbacks=[adapt]).train(resume_from_checkpoint=checkpoint)
    return model, adapt.controller


if __name__ == "__main__":
    main("runs/transformers")
