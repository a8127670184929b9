"""Grow-and-drop in a loop of one's own; a second call goes on from the checkpoint."""

from pathlib import Path

import torch
from dmao.controller import GrowAndDrop
from dmao.schedule import Schedule

from dmao_kernels.nn import ConformerBlock


def main(checkpoint: Path, steps: int = 40, total: int = 40) -> torch.nn.Module:
    model = torch.nn.Sequential(ConformerBlock(16, heads=4, head_dim=4), ConformerBlock(16, heads=4, head_dim=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    controller = GrowAndDrop(model, optimizer, Schedule(start=0.3, end=0.7, events=2), total)
    parts, first = {"controller": controller, "model": model, "optimizer": optimizer}, 1
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        first = saved["step"] + 1
        for name, part in parts.items():  # the controller first: it gives the model its widths
            part.load_state_dict(saved[name])
    for step in range(first, steps + 1):
        x = torch.randn(8, 20, 16, generator=torch.Generator().manual_seed(step))
        (model(x) - x.roll(1, dims=1)).square().mean().backward()
        controller.observe()
        optimizer.step()
        optimizer.zero_grad()
        if controller.due(step):
            print(controller.adapt())
    torch.save({"step": steps, **{name: part.state_dict() for name, part in parts.items()}}, checkpoint)
    return model


if __name__ == "__main__":
    main(Path("plain_loop.pt"))
