"""What components cost in time on this device, from a short calibration with copies of the model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dmao_kernels.structure.costs import Costs
from dmao_kernels.structure.edit import apply_plan
from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.plan import given_plan

MIN_REPS = 5
CONFIDENCE = 2.0  # a saving counts where it is so many standard errors above zero


@dataclass(frozen=True)
class LatencyCost:
    """A component costs the time it adds to a pass through the whole model, in nanoseconds.

    example: the input of a forward and backward pass (a tensor, or a tuple of arguments), or a function of the model
        that does what is to be timed, e.g. ``lambda model: loss(model(x), y).backward()``.
    backward: whether the pass with example inputs has a backward half.
    reps: passes at every width.

    For every kind of elastic module (same class, layout and sizes) three models are timed in turns: as it is, all
    modules of the kind at twice their width, and all of them empty. The differences tell what a component and what a
    live module cost; medians of the differences in every turn keep disturbances out. A module that cannot be empty has
    no shared cost of its own. Copies of the model are timed, in the mode it is in; neither it nor torch's random state
    is touched. The result is data: saved with a training, it makes the resumed one plan the same.

    Raises ValueError where reps is below 5, or where twice the width is not slower than once, by more than the noise.
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
        device = next(t for m in elastic.modules.values() for _, t in m.tensors()).device
        own, shared, whole = {}, {}, []
        with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=_generator_type(device)):
            for modules in _kinds(elastic):
                times = self._time(elastic, [m.name for m in modules], modules[0].can_be_empty, device)
                whole.append(median(times[0]))
                fit = _fit(modules, times)
                own |= {m.name: fit[0] for m in modules}
                shared |= {m.name: fit[1] for m in modules}
        elastic_part = Costs(self.unit, own, shared).total(elastic.counts())
        return Costs(self.unit, own, shared, max(0, round(median(whole)) - elastic_part), measured=True)

    def _time(
        self, elastic: Elastic, names: Sequence[str], with_empty: bool, device: torch.device
    ) -> list[list[float]]:
        """Nanoseconds of every turn: as it is, twice as wide, and empty."""
        variants = [_resized(elastic, names, times) for times in ((1, 2, 0) if with_empty else (1, 2))]
        for _ in range(2):
            for model in variants:
                self._pass(model, device)
        turns = [[self._pass(model, device) for model in variants] for _ in range(self.reps)]
        return [list(column) for column in zip(*turns, strict=True)]

    def _pass(self, model: nn.Module, device: torch.device) -> float:
        """Nanoseconds of one pass."""
        model.zero_grad(set_to_none=True)
        _synchronize(device)
        start = time.perf_counter_ns()
        with torch.enable_grad():
            self._run(model)
        _synchronize(device)
        return float(time.perf_counter_ns() - start)

    def _run(self, model: nn.Module) -> None:
        if callable(self.example):
            self.example(model)
            return
        arguments = (self.example,) if isinstance(self.example, Tensor) else self.example
        with torch.set_grad_enabled(self.backward):
            outputs = model(*arguments)
        if self.backward:
            total = sum(out.float().sum() for out in _tensors(outputs) if out.requires_grad)
            if not isinstance(total, Tensor):
                raise ValueError("LatencyCost: the model's outputs have no gradient; set backward=False")
            total.backward()


def _kinds(elastic: Elastic) -> list[list[ElasticModule]]:
    """The modules by class, layout and sizes: those of one kind cost the same."""
    kinds: dict[tuple[Any, ...], list[ElasticModule]] = {}
    for m in elastic.modules.values():
        key = (type(m.module), m.layout.family, tuple(sorted(m.sizes.items())), m.can_be_empty)
        kinds.setdefault(key, []).append(m)
    return list(kinds.values())


def _resized(elastic: Elastic, names: Sequence[str], times: int) -> nn.Module:
    """A copy of the model in which every component of these modules stands so many times."""
    other = copy.deepcopy(elastic)
    counts = other.counts()
    sources = {name: [j for j in range(counts[name]) for _ in range(times)] for name in names}
    apply_plan(given_plan(sources, counts), other, split="halves")
    return other.model


def _fit(modules: Sequence[ElasticModule], times: Sequence[Sequence[float]]) -> tuple[int, int]:
    """What a component and what a live module of this kind cost."""
    components = sum(m.components for m in modules)
    growth = [twice - once for once, twice, *_ in zip(*times, strict=True)]
    slope = median(growth) / components
    if median(growth) <= CONFIDENCE * _standard_error(growth) or slope < 1:
        once, twice = median(times[0]) / 1e6, median(times[1]) / 1e6
        raise ValueError(
            f"LatencyCost: {modules[0].layout.family} modules ({modules[0].name} and {len(modules) - 1} more): a pass "
            f"takes {once:.3f} ms, and {twice:.3f} ms at twice their width: {len(growth)} turns cannot tell what a "
            "component costs; raise reps or the size of the example, or keep the machine free of other work"
        )
    if len(times) == 2:
        return round(slope), 0
    module = median(once - empty for once, _, empty in zip(*times, strict=True)) / len(modules)
    shared = module - slope * components / len(modules)
    if shared >= 0:
        return round(slope), round(shared)
    slope = median(twice - empty for _, twice, empty in zip(*times, strict=True)) / (2 * components)
    return max(1, round(slope)), 0  # a line through all three widths: half of it is no dearer than the whole


def _standard_error(values: Sequence[float]) -> float:
    """Of the median, from the median absolute deviation, which outliers do not move."""
    middle = median(values)
    return 1.2533 * 1.4826 * median(abs(value - middle) for value in values) / math.sqrt(len(values))


def _tensors(outputs: Any) -> Iterable[Tensor]:
    """All tensors in nested outputs."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)


def _generator_type(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
