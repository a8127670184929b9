"""What components cost in time on this device, from a short calibration with copies of the model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn

from dmao_kernels.structure.costs import Costs
from dmao_kernels.structure.edit import apply_plan
from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.following import tensors_in
from dmao_kernels.structure.plan import given_plan

MIN_REPS = 5
MOST_ROUNDS = 5  # of `reps` turns each, while noise hides what a component costs
PRECISION = 0.1  # of that cost, as a standard error, which ends the rounds
CONFIDENCE = 2.0  # a difference counts where it is so many standard errors above zero
ENTRIES = ("forward", "transform")  # through which a module is called; a residual block of ours calls `transform`


@dataclass(frozen=True)
class LatencyCost:
    """A component costs the time that it adds to a pass through its module, in nanoseconds.

    example: the input of the model (a tensor, or a tuple of arguments), or a function of the model that does what is
        to be timed, e.g. ``lambda model: loss(model(x), y).backward()``.
    backward: whether forward and backward pass are timed, or the forward pass alone.
    reps: passes that are timed at every width; up to five times as many where the machine is noisy.

    One pass through a copy of the model shows what every elastic module is given. Of every kind (same class, layout and
    sizes) one module is then timed as it is and at twice its width, in turns: the difference tells what a component
    costs, and what remains is shared by all of them. What the whole model takes beyond its elastic modules is fixed.
    Lower quartiles are compared, for other work on the machine only ever adds time. Neither the model nor torch's
    random state is touched. The result is data: saved with a training, it makes the resumed one plan the same.

    Raises ValueError where reps is below 5, a module is empty or not called, or where twice the width is not slower
    than once by more than the noise.
    """

    example: Tensor | Sequence[Any] | Callable[[nn.Module], object]
    backward: bool = True
    reps: int = 11
    unit = "ns"

    def __post_init__(self) -> None:
        if self.reps < MIN_REPS:
            raise ValueError(f"LatencyCost: reps must be {MIN_REPS} or more, got {self.reps}")

    def measure(self, elastic: Elastic) -> Costs:
        """The costs of this model on its device."""
        if empty := [m.name for m in elastic.modules.values() if m.components == 0]:
            raise ValueError(f"LatencyCost: every module must have components, got none in {', '.join(empty)}")
        own: dict[str, int] = {}
        shared: dict[str, int] = {}
        device = next(t for m in elastic.modules.values() for _, t in m.tensors()).device
        with _same_random_state(device), torch.enable_grad():
            calls, whole = self._whole(elastic, device)
            for modules in _kinds(elastic):
                called = next((m for m in modules if m.name in calls), None)
                if called is None:
                    raise ValueError(f"LatencyCost: example must call {modules[0].name}, but it was not called")
                component, live = self._fit(elastic, called, calls[called.name], device)
                own |= dict.fromkeys((m.name for m in modules), component)
                shared |= dict.fromkeys((m.name for m in modules), live)
        elastic_part = Costs(self.unit, own, shared).total(elastic.counts())
        return Costs(self.unit, own, shared, max(0, round(whole.low) - elastic_part), measured=True)

    def _whole(self, elastic: Elastic, device: torch.device) -> tuple[dict[str, _Call], _Time]:
        """What the elastic modules are called with, and the time of the whole model."""
        model = copy.deepcopy(elastic.model)
        run = partial(self._run_model, model)
        with _record_calls({name: model.get_submodule(name) for name in elastic.modules}) as calls:
            run()
        _warm_up([run], device)
        return calls, _Time.of([_nanoseconds(run, device) for _ in range(self.reps)])

    def _run_model(self, model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        if callable(self.example):
            self.example(model)
        else:
            arguments = (self.example,) if isinstance(self.example, Tensor) else self.example
            _run(model, arguments, {}, self.backward)

    def _fit(self, elastic: Elastic, m: ElasticModule, call: _Call, device: torch.device) -> tuple[int, int]:
        """What a component of this module costs, and what the live module costs besides."""
        runs = [partial(call.run, _resized(elastic, m.name, times), self.backward) for times in (1, 2)]
        _warm_up(runs, device)
        turns: list[list[float]] = []
        for _ in range(MOST_ROUNDS):
            turns += [[_nanoseconds(run, device) for run in runs] for _ in range(self.reps)]
            once, twice = (_Time.of(column) for column in zip(*turns, strict=True))
            if twice.above(once, 1 / PRECISION):
                break
        slope = (twice.low - once.low) / m.components
        if not twice.above(once, CONFIDENCE) or slope < 1:
            raise ValueError(
                f"LatencyCost: {m.title} ({m.layout.family}) takes {once} as it is and {twice} at twice its width, "
                f"which does not tell what a component costs; raise reps ({self.reps}) or the size of the example, or "
                "keep the machine free of other work"
            )
        shared = once.low - slope * m.components
        if shared >= 0:
            return round(slope), round(shared)
        return round(twice.low / (2 * m.components)), 0  # the first half is no dearer than the second


@dataclass(frozen=True)
class _Time:
    """low: lower quartile of the nanoseconds of some passes.  error: its standard error."""

    low: float
    error: float

    @classmethod
    def of(cls, passes: Sequence[float]) -> _Time:
        cuts = quantiles(passes, n=20, method="inclusive")  # every 5 %
        density = 0.3 / (cuts[7] - cuts[1]) if cuts[7] > cuts[1] else math.inf  # between 10 % and 40 %
        return cls(cuts[4], math.sqrt(0.25 * 0.75 / len(passes)) / density)

    def above(self, other: _Time, errors: float) -> bool:
        """Whether it is longer than the other by more than so many standard errors of the difference."""
        return self.low - other.low > errors * math.hypot(self.error, other.error)

    def __str__(self) -> str:
        return f"{self.low / 1e6:.4f} +- {self.error / 1e6:.4f} ms"


@dataclass(frozen=True)
class _Call:
    """How a module was called: through which method, and with what."""

    entry: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def run(self, module: nn.Module, backward: bool) -> None:
        """The same call of another module, and its backward pass."""
        module.zero_grad(set_to_none=True)
        _run(getattr(module, self.entry), _detached(self.arguments), _detached(self.keywords), backward)


@contextmanager
def _record_calls(modules: dict[str, nn.Module]) -> Iterator[dict[str, _Call]]:
    """The first call of each of these modules, by name."""
    calls: dict[str, _Call] = {}

    def recording(name: str, entry: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.setdefault(name, _Call(entry, _detached(args), _detached(kwargs)))
        return method(*args, **kwargs)

    wrapped = [
        (m, name, entry) for name, m in modules.items() for entry in ENTRIES if callable(getattr(m, entry, None))
    ]
    before = [m.__dict__.get(entry) for m, _, entry in wrapped]
    for m, name, entry in wrapped:
        setattr(m, entry, partial(recording, name, entry, getattr(m, entry)))
    try:
        yield calls
    finally:
        for (m, _, entry), method in zip(wrapped, before, strict=True):
            delattr(m, entry) if method is None else setattr(m, entry, method)


def _run(function: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any], backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        outputs = function(*arguments, **keywords)
    losses = [out.float().sum() for out in tensors_in(outputs) if out.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()


def _kinds(elastic: Elastic) -> list[list[ElasticModule]]:
    """The modules by class, layout and sizes: those of one kind cost the same."""
    kinds: dict[tuple[Any, ...], list[ElasticModule]] = {}
    for m in elastic.modules.values():
        kinds.setdefault((type(m.module), m.layout.family, tuple(sorted(m.sizes.items()))), []).append(m)
    return list(kinds.values())


def _resized(elastic: Elastic, name: str, times: int) -> nn.Module:
    """A copy of the module in which every component stands so many times."""
    other = copy.deepcopy(elastic)
    components = other.counts()[name]
    sources = [j for j in range(components) for _ in range(times)]
    apply_plan(given_plan({name: sources}, {name: components}), other, split="halves")
    return other.modules[name].module


def _warm_up(runs: Sequence[Callable[[], None]], device: torch.device) -> None:
    for _ in range(2):
        for run in runs:
            _nanoseconds(run, device)


def _nanoseconds(run: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter_ns()
    run()
    _synchronize(device)
    return float(time.perf_counter_ns() - start)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _same_random_state(device: torch.device) -> AbstractContextManager[None]:
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


def _detached(value: Any) -> Any:
    """Tensors, also nested ones, without the graph behind them, but asking for gradients as before."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_detached(item) for item in value)
    return value
