"""DistributedDataParallel made before the controller changed what it wraps, and optimizers inside of others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from dmao.controller import GrowAndDrop
from dmao.distributed import rewrap
from dmao.schedule import Schedule
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from dmao_kernels.structure import Elastic
from tests.trainer.loop import batch, build, observe, run, setup


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
    with pytest.raises(RuntimeError, match=r"was edited, by an event, a loaded state.*, after DistributedDataParallel"):
        wrapped(x)
    anew = rewrap(wrapped)
    anew(x).sum().backward()
    again.observe()
    assert again.due(24)
    again.adapt()
    assert wrapped.module(x).isfinite().all()
    with pytest.raises(RuntimeError, match=r"go on with dmao\.distributed\.rewrap"):
        anew(x)


def let_an_event_fall(controller: GrowAndDrop) -> None:
    observe(controller)
    controller.adapt()


WRAPPED = {
    "plain": DistributedDataParallel,
    "inside": lambda model: DistributedDataParallel(nn.Sequential(model)),
    "compiled": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "of compiled": lambda model: DistributedDataParallel(torch.compile(model, backend="eager", fullgraph=True)),
    "derived": lambda model: type("Derived", (DistributedDataParallel,), {})(model),
}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapper_made_after_the_controller_refuses_too(alone: None, kind: str, used: bool) -> None:
    """Also one that is used for the first time after the event."""
    torch.compiler.reset()
    model, _, controller = setup()
    wrapped, x = WRAPPED[kind](model), batch(0)[0]
    if used:
        wrapped(x)
    for _ in range(2):
        let_an_event_fall(controller)
        with pytest.raises(RuntimeError, match="was edited, by an event"):
            wrapped(x)
        wrapped = rewrap(wrapped)
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped(x).sum().backward()


def test_a_wrapper_made_before_the_controller_refuses_too(alone: None) -> None:
    model = build()
    wrapped, other = DistributedDataParallel(model), DistributedDataParallel(build())
    let_an_event_fall(GrowAndDrop(model, None, Schedule(start=0.3), 40))
    with pytest.raises(RuntimeError, match="was edited"):
        wrapped(batch(0)[0])
    other(batch(0)[0])


def test_what_needs_no_gradients_may_still_be_computed(alone: None) -> None:
    model, optimizer, controller = setup()
    wrapped = DistributedDataParallel(model)
    failed = _broken()
    run(model, optimizer, controller, range(1, 13))
    x = batch(0)[0]
    assert isinstance(failed, ArithmeticError)
    with torch.no_grad():
        assert torch.equal(wrapped(x), model(x))
    with pytest.raises(RuntimeError, match="was edited"):
        wrapped(x)


def _broken() -> BaseException:
    """What holds a wrapper whose making failed."""

    class Failing(DistributedDataParallel):
        def __init__(self) -> None:
            raise ArithmeticError(self)

    with pytest.raises(ArithmeticError) as caught:
        Failing()
    return caught.value


@pytest.mark.parametrize("settings", [{"storage": "slots"}, {"metric": "gate"}], ids=str)
def test_slots_and_gates_retire_a_wrapper_that_the_controller_was_not_given(alone: None, settings: dict) -> None:
    model = build()
    wrapped, x = DistributedDataParallel(model), batch(0)[0]
    controller = GrowAndDrop(model, None, Schedule(start=1), 4, **settings)
    with pytest.raises(RuntimeError, match=r"was edited, .* slots storage or gates"):
        wrapped(x)
    anew = rewrap(wrapped)
    anew(x)
    if controller.elastic.storage == "slots":  # whose shapes stay from here on
        let_an_event_fall(controller)
        anew(x).sum().backward()


def test_a_state_of_the_same_widths_retires_nothing(alone: None) -> None:
    model, _, controller = setup()
    wrapped = DistributedDataParallel(model)
    controller.load_state_dict(controller.state_dict())
    wrapped(batch(0)[0])


def test_the_model_gets_no_hooks(alone: None) -> None:
    model, _, controller = setup()
    DistributedDataParallel(model)
    let_an_event_fall(controller)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_no_wrapper_is_given_back() -> None:
    model = build()
    assert rewrap(model) is model
    compiled = torch.compile(model)
    assert rewrap(compiled) is compiled


@pytest.mark.parametrize("settings", [{"storage": "slots"}, {"metric": "gate"}], ids=str)
def test_a_wrapper_whose_parameters_would_change_is_refused(alone: None, settings: dict) -> None:
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}='{value}' changes parameters that DistributedDataParallel counts on"):
        GrowAndDrop(DistributedDataParallel(build()), None, Schedule(start=1), 4, **settings)
    GrowAndDrop(build(), None, Schedule(start=1), 4, **settings)


class Around(torch.optim.Optimizer):
    """An optimizer around another, whose own state stays empty."""

    def __init__(self, parameters, lr: float) -> None:
        self.inside = torch.optim.AdamW(parameters, lr=lr)
        super().__init__(self.inside.param_groups, {})

    def step(self, closure=None):
        return self.inside.step(closure)


class Passing(Around):
    """As accelerate's, which passes on what is inside."""

    state = property(lambda self: self.inside.state, lambda self, value: None)


class Hybrid(torch.optim.Optimizer):
    """Two in a mapping of pairs, each for a half of the parameters."""

    def __init__(self, parameters, lr: float) -> None:
        parameters = list(parameters)
        halves = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        self.optimizers = {"halves": [(i, torch.optim.AdamW(half, lr=lr)) for i, half in enumerate(halves)]}
        super().__init__(parameters, {})

    def step(self, closure=None):
        for _, each in self.optimizers["halves"]:
            each.step()


class Merging(Hybrid):
    """As torchrec's: the state is made of theirs when it is asked for."""

    state = property(
        lambda self: {key: value for _, each in self.optimizers["halves"] for key, value in each.state.items()},
        lambda self, value: None,
    )


def of_zero(parameters, lr: float) -> torch.optim.Optimizer:
    return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=lr)


@pytest.mark.parametrize("storage", ["tight", "slots"])
@pytest.mark.parametrize("kind", [Around, Passing, Hybrid, Merging, of_zero], ids=lambda kind: kind.__name__)
def test_moments_inside_of_another_optimizer_follow(alone: None, kind, storage: str) -> None:
    expected, _ = run(*setup(storage=storage), range(1, 21))
    assert run(*setup(optimizer_class=kind, storage=storage), range(1, 21))[0] == expected


def test_options_of_zero_with_which_an_edit_cannot_be_followed(alone: None) -> None:
    def controller(model, **options):
        parameters = (model.model if isinstance(model, Elastic) else model).parameters()
        optimizer = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=0.01, **options)
        return GrowAndDrop(model, optimizer, Schedule(start=1), 4)

    with pytest.raises(ValueError, match="parameters_as_bucket_view must be False where edits change shapes"):
        controller(build(), parameters_as_bucket_view=True)
    let_an_event_fall(controller(Elastic(build(), storage="slots"), parameters_as_bucket_view=True))
    with pytest.raises(ValueError, match="overlap_with_ddp must be False, got True"):
        controller(Elastic(build(), storage="slots"), overlap_with_ddp=True)
