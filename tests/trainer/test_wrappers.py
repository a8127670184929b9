"""DistributedDataParallel made before the controller changed what it wraps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from dmao.controller import GrowAndDrop
from dmao.distributed import rewrap
from dmao.schedule import Schedule
from torch.nn.parallel import DistributedDataParallel

from tests.trainer.loop import batch, build, run, setup


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrapper_of_a_model_that_was_edited_refuses(alone: None) -> None:
    model, optimizer, controller = setup()
    run(model, optimizer, controller, range(1, 13))
    saved = controller.state_dict()
    wrapped = DistributedDataParallel(build())
    again = GrowAndDrop(wrapped, None, controller.schedule, controller.total_steps)
    x = batch(0)[0]
    wrapped(x)
    again.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="was edited, by an event or a loaded state, after DistributedDataParallel"):
        wrapped(x)
    anew = rewrap(wrapped)
    anew(x).sum().backward()
    again.observe()
    assert again.due(24)
    again.adapt()
    assert wrapped.module(x).isfinite().all()
    with pytest.raises(RuntimeError, match=r"go on with dmao\.distributed\.rewrap"):
        anew(x)


@pytest.mark.parametrize("settings", [{"storage": "slots"}, {"metric": "gate"}], ids=str)
def test_a_wrapper_whose_parameters_would_change_is_refused(alone: None, settings: dict) -> None:
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}='{value}' changes parameters that DistributedDataParallel counts on"):
        GrowAndDrop(DistributedDataParallel(build()), None, Schedule(start=1), 4, **settings)
    GrowAndDrop(build(), None, Schedule(start=1), 4, **settings)
