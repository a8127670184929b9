"""Called by test_callbacks.py on two processes: after an event the ranks must go on as one.

torchrun --nproc-per-node 2 -m tests.integrations.several_ranks FOLDER
"""

import sys

import lightning
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from dmao.controller import GrowAndDrop
from dmao.distributed import rewrap
from dmao.integrations.accelerate import checkpoint_with
from dmao.integrations.lightning import GrowAndDropCallback
from dmao.schedule import Schedule
from torch.nn.parallel import DistributedDataParallel

from dmao_kernels.nn import ConformerBlock
from tests.integrations.test_examples import LIGHTNING, example

SCHEDULE = Schedule(start=2, end=4, events=2)


def batches(steps):
    generator = torch.Generator().manual_seed(dist.get_rank())
    return [torch.randn(2, 8, 16, generator=generator) for _ in range(steps)]


def slots_with_lightning(folder):
    task, adapt = example("with_lightning").Task(), GrowAndDropCallback(SCHEDULE, total_steps=6, storage="slots")
    trainer = lightning.Trainer(
        callbacks=[adapt],
        strategy="ddp",
        devices=2,
        max_steps=6,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **LIGHTNING,
    )
    trainer.fit(task, torch.utils.data.DataLoader(batches(6), batch_size=None))
    return task, adapt.controller


def tight_with_accelerate(folder):
    accelerator, model = Accelerator(cpu=True), ConformerBlock(16, heads=4, head_dim=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    controller = GrowAndDrop(model, optimizer, SCHEDULE, 6)
    checkpoint_with(accelerator, controller)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    assert isinstance(prepared, DistributedDataParallel)
    for step, x in enumerate(batches(6), 1):
        accelerator.backward((prepared(x) - x.roll(1, dims=1)).square().mean())
        controller.observe()
        wrapped.step()
        wrapped.zero_grad()
        if controller.due(step):
            controller.adapt()
            with pytest.raises(RuntimeError, match="was edited, by an event"):
                prepared(x)
            prepared = rewrap(prepared)
    accelerator.save_state(folder)
    return model, controller


def main(folder):
    dist.init_process_group("gloo")
    for train in (slots_with_lightning, tight_with_accelerate):
        torch.manual_seed(0)
        model, controller = train(folder)
        assert [event.step for event in controller.events] == [2, 4]
        for name, parameter in model.named_parameters():
            theirs = parameter.detach().clone()
            dist.broadcast(theirs, 0)
            torch.testing.assert_close(parameter.detach(), theirs, msg=f"{train.__name__}: {name}")
        print(f"rank {dist.get_rank()}: {train.__name__}: equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
