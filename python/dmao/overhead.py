"""What grow-and-drop costs, measured: A and B in alternation, on the real model and real batches.

Single steps vary by far more than the scores cost, so only pairs on the same batch are compared, and every
median comes with its 95 % confidence interval (order statistics).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dmao.config import TrainConfig
from dmao.controller import GrowAndDrop
from dmao.errors import UserError
from dmao.evaluate import load_checkpoint
from dmao.progress import bar
from dmao.source import CorpusSource, Source, saved_source, with_steps
from dmao.step import TrainingStep, build_model, make_controller, make_optimizer, restore

if TYPE_CHECKING:
    from dmao.data.loader import Batch

WARM_UP = 3


@dataclass(frozen=True)
class Median:
    """A median and its 95 % confidence interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Median:
        """Of one or more values; of few of them the interval is their whole range."""
        ordered, n = sorted(values), len(values)
        rank = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
        return cls(statistics.median(ordered), ordered[rank], ordered[n - 1 - rank])

    def times(self, factor: float) -> Median:
        """The median in another unit."""
        return Median(self.median * factor, self.low * factor, self.high * factor)

    def plus(self, other: Median) -> Median:
        """The sum; its interval is that of the worst and the best of both, wider than 95 %."""
        return Median(self.median + other.median, self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Overhead:
    """Costs in percent of the training time without them.

    scoring_pct: of a step with scores against the same step without.
    optimizer_pct: the same of the optimizer's part of the step alone. The rest is the same code with and without,
        and varies by more than the scores cost: this is the sharper figure.
    events_pct: of all events of the schedule.
    total_pct: optimizer_pct and events_pct together.
    event_ms: of one event.  step_ms: of a step without scores.
    """

    scoring_pct: Median
    optimizer_pct: Median
    events_pct: Median
    total_pct: Median
    event_ms: Median
    step_ms: Median

    def to_dict(self) -> dict[str, dict[str, float]]:
        """{name: {"median", "low", "high"}}."""
        return asdict(self)


def measure_overhead(config: TrainConfig, data: Source | None = None, pairs: int = 40, events: int = 7) -> Overhead:
    """Measures scoring and events for the training that `config` describes, at its uniform widths.

    pairs: batches that are trained on twice, with and without scores, in changing order.
    events: deep copies of model, optimizer and controller on which an event is timed.

    Raises UserError where the config has no schedule, or `pairs` or `events` are below 1.
    """
    schedule = config.grow_and_drop.schedule
    if schedule is None:
        raise UserError("overhead: the config has no grow_and_drop.schedule, so there is nothing to measure")
    if min(pairs, events) < 1:
        raise UserError(f"overhead: pairs and events must be 1 or more, got {pairs} and {events}")
    torch.set_num_threads(config.threads)
    data = data or CorpusSource(config)
    config = with_steps(config, data)
    # every call is made to score here; what that costs is shared out over observe_every steps below
    every = config.grow_and_drop.observe_every
    config = dataclasses.replace(config, grow_and_drop=dataclasses.replace(config.grow_and_drop, observe_every=1))
    model = build_model(config, len(data.labels), data.inputs)
    optimizer = make_optimizer(model, config.optimizer)
    controller = make_controller(model, optimizer, config)
    assert controller is not None
    plain = copy.copy(optimizer)  # of the same parameters and state
    plain.scores = None
    arms = {
        "with": TrainingStep(model, optimizer, config, controller),
        "without": TrainingStep(model, plain, config, controller),
    }
    clocks = {name: _OptimizerClock(arm.optimizer) for name, arm in arms.items()}
    seconds = _alternate(arms, data, pairs)
    steps = seconds["without"]
    scoring = [(a - b) / b for a, b in zip(seconds["with"], steps, strict=True)]
    update, plain_update = (clocks[name].seconds[-pairs:] for name in ("with", "without"))
    scores = [(a - b) / step for a, b, step in zip(update, plain_update, steps, strict=True)]
    step = Median.of(steps)
    event = Median.of([_event_seconds(controller) for _ in range(events)])
    optimizer_pct = Median.of(scores).times(100 / every)
    events_pct = event.times(100 * schedule.events / (config.steps * step.median))
    return Overhead(
        scoring_pct=Median.of(scoring).times(100 / every),
        optimizer_pct=optimizer_pct,
        events_pct=events_pct,
        total_pct=optimizer_pct.plus(events_pct),
        event_ms=event.times(1000),
        step_ms=step.times(1000),
    )


def step_times(arms: Mapping[str, str | Path], data: Source | None = None, pairs: int = 40) -> dict[str, Median]:
    """Milliseconds of a training step of each checkpoint (or run directory), in turns on the same batches.

    Each arm trains on as it did, scores included where it has a controller; nothing is written.
    """
    steps: dict[str, TrainingStep] = {}
    for name, path in arms.items():
        state = load_checkpoint(path)
        model, optimizer, controller, config = restore(state)
        steps[name] = TrainingStep(model, optimizer, config, controller)
        torch.set_num_threads(config.threads)
        data = data or saved_source(state, config)
    if not steps or data is None:
        raise UserError("overhead: step_times needs at least one checkpoint")
    return {name: Median.of(times).times(1000) for name, times in _alternate(steps, data, pairs).items()}


class _OptimizerClock:
    """The seconds of every step() of an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.seconds: list[float] = []
        self._start = 0.0
        optimizer.register_step_pre_hook(lambda *_: self._begin())
        optimizer.register_step_post_hook(lambda *_: self._end())

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _end(self) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def _alternate(arms: Mapping[str, TrainingStep], data: Source, pairs: int) -> dict[str, list[float]]:
    """Seconds of every arm's step on the same batches; who comes first changes from batch to batch."""
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    batches = _endless(data)
    for index in bar(range(WARM_UP + pairs), "measuring", "pair"):
        batch = next(batches)
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            arms[name](batch, index + 1)
            if index >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _endless(data: Source) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from data.train_batches(epoch)
        epoch += 1


def _event_seconds(controller: GrowAndDrop) -> float:
    trial = copy.deepcopy(controller)
    start = time.perf_counter()
    trial.adapt()
    return time.perf_counter() - start
