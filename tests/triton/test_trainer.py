"""Training on a GPU with events: as on the CPU, and in slots storage the host waits for nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from dmao.controller import GrowAndDrop
from dmao.models import ConformerConfig, ConformerCTC, ctc_loss
from dmao.schedule import Schedule
from torch import Tensor, nn

from dmao_kernels import dispatch
from dmao_kernels.nn import FeedForward
from dmao_kernels.structure import ScoringAdamW

STEPS = 10
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor's device chooses the backend, as in a training; float32 is not rounded on its way."""
    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


class Stack(nn.Module):
    """Feed-forward layers with residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FeedForward(24, 32, dropout=0.0, components=4) for _ in range(3))

    def loss(self, device: str, draw: torch.Generator) -> Tensor:
        x = first = torch.randn(5, 7, 24, generator=draw).to(device)
        for layer in self.layers:
            x = x + layer(x)
        return (x - first.roll(1, -1)).square().mean()


class Recognizer(ConformerCTC):
    """Every layer of the library, on utterances of several lengths."""

    def __init__(self) -> None:
        super().__init__(
            ConformerConfig(
                outputs=5, inputs=8, width=16, blocks=2, heads=2, kernel=5, dropout=0.0, output_dropout=0.0,
                front_channels=(4, 4, 4, 4), components=4,
            )
        )  # fmt: skip

    def loss(self, device: str, draw: torch.Generator) -> Tensor:
        features, lengths = torch.randn(3, 60, 8, generator=draw), torch.tensor([60, 41, 33])
        targets, target_lengths = torch.randint(1, 5, (9,), generator=draw), torch.tensor([4, 3, 2])
        return ctc_loss(*self(features.to(device), lengths), targets, target_lengths)[0]


MODELS = {"feed-forward": Stack, "conformer": Recognizer}


@contextmanager
def no_waiting() -> Iterator[None]:
    """The host must not wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train(model: str, device: str, storage: Any, own_optimizer: bool = True, **options: Any) -> dict[str, Any]:
    """What a training with events does and ends with; checks that slots storage waits for nothing."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    module = MODELS[model]().to(device)
    kind = ScoringAdamW if own_optimizer else torch.optim.AdamW
    optimizer = kind(module.parameters(), lr=1e-3)
    controller = GrowAndDrop(module, optimizer, total_steps=STEPS, storage=storage, beta=0.5, **options)
    checked = nullcontext if device == "cpu" or storage == "tight" else no_waiting
    losses, events = [], []
    for step in range(1, STEPS + 1):
        loss = module.loss(device, draw)
        loss.backward()
        losses.append(loss.item())
        with checked():
            if own_optimizer:
                optimizer.step(grad_factor=torch.full((), 0.5, device=device))
            else:
                controller.observe()
        if not own_optimizer:
            optimizer.step()
        optimizer.zero_grad()
        if controller.due(step):
            with checked():
                events.append(controller.adapt())
    return {
        "losses": torch.tensor(losses),
        "events": [(event.dropped, event.grown) for event in events],
        "widths": controller.elastic.counts(),
        "scores": torch.cat([values.cpu() for values in controller.scores.values().values()]),
        "weights": torch.cat([p.detach().cpu().flatten() for p in module.parameters()]),
    }


def check(model: str, device: str, storage: str, **options: Any) -> None:
    found, expected = (train(model, where, storage, **options) for where in (device, "cpu"))
    assert found["events"] == expected["events"]
    assert all(dropped and grown for dropped, grown in found["events"])
    assert found["widths"] == expected["widths"]
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=2e-2, atol=1e-6)
    # Where a gradient is nearly zero, Adam's step has the sign of its rounding errors: a few entries are far apart.
    assert (found["weights"] - expected["weights"]).abs().median() < 1e-5


@pytest.mark.parametrize("own_optimizer", [True, False], ids=["ScoringAdamW", "AdamW"])
@pytest.mark.parametrize("model", MODELS)
def test_tight(model: str, own_optimizer: bool, device: str) -> None:
    """The noise of copies is drawn on the CPU, and so is the same."""
    schedule = Schedule(start=4, end=7, events=2, fraction=0.4)
    check(model, device, "tight", schedule=schedule, own_optimizer=own_optimizer)


@pytest.mark.parametrize("own_optimizer", [True, False], ids=["ScoringAdamW", "AdamW"])
@pytest.mark.parametrize("model", MODELS)
def test_slots(model: str, own_optimizer: bool, device: str) -> None:
    schedule = Schedule(start=5, events=1, fraction=0.3)
    check(model, device, "slots", schedule=schedule, split="halves", own_optimizer=own_optimizer)


@pytest.mark.parametrize("selection", ["exact", "paper"])
def test_many_events_in_slots_wait_for_nothing(selection: str, device: str) -> None:
    schedule = Schedule(start=2, end=8, events=4, fraction=0.6)
    found = train("conformer", device, "slots", schedule=schedule, selection=selection, revive=True, per_cost=True)
    assert found["losses"].isfinite().all()
    assert sum(dropped for dropped, _ in found["events"]) > 0
