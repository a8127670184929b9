"""Grow-and-drop with Lightning; `checkpoint` is one that its Trainer has saved."""

import lightning
import torch
from dmao.integrations.lightning import GrowAndDropCallback
from dmao.schedule import Schedule

from dmao_kernels.nn import ConformerBlock


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(*(ConformerBlock(16, heads=4, head_dim=4) for _ in range(2)))

    def training_step(self, x, index):
        return (self.model(x) - x.roll(1, dims=1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main(folder, checkpoint=None, steps=40, total=40, **options):
    task, data = Task(), torch.randn(20, 8, 20, 16, generator=torch.Generator().manual_seed(0))
    adapt = GrowAndDropCallback(Schedule(start=0.3, end=0.7, events=2), total_steps=total)
    trainer = lightning.Trainer(max_steps=steps, callbacks=[adapt], default_root_dir=folder, **options)
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=None), ckpt_path=checkpoint)
    return task.model, adapt.controller


if __name__ == "__main__":
    main("runs/lightning")
