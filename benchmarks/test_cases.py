"""Every registered case: `make bench`, `make bench-quick`, or `pytest benchmarks -k importance`.

pytest-benchmark times ours; the setup of each of its rounds runs and times the peers. So all candidates take turns
in one process, and a disturbance of the machine meets each of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks._harness import Timing
from benchmarks.registry import OURS, SLOW_PEERS, Case, Problem
from benchmarks.report import Measured
from benchmarks.roofline import measure

LONG = 30.0  # seconds of a round that needs no second one to warm up
QUICK = 3  # rounds of a quick run, at least


@pytest.mark.timeout(0)
def test_case(
    case: Case, threads: int, benchmark: Any, measured: list[Measured], request: pytest.FixtureRequest
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.compiler.reset()  # compiled code is made for one number of threads
    try:
        if (case.op, threads) not in {(it.case.op, it.threads) for it in measured}:
            measure(threads)
        problem = case.make()
        try:
            problem.gate()
        except AssertionError as error:
            measured.append(Measured.of(case, threads, problem, gate=f"red: {error}".splitlines()[0]))
            raise
        seconds = request.config.option.seconds
        if problem.measure is not None:
            times = benchmark.pedantic(problem.measure, args=(seconds,))
        else:
            with _no_collector():
                times = _in_turns(case, problem, benchmark, seconds, request.config.option.quick)
        measured.append(Measured.of(case, threads, problem, times))
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Python's garbage is not collected within a round: pytest-benchmark would see to that for ours alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _in_turns(case: Case, problem: Problem, benchmark: Any, budget: float, quick: bool) -> dict[str, Timing]:
    """Times every candidate once a round, for about `budget` seconds."""
    candidates = {name: call for name, call in problem.candidates.items() if not (quick and name in SLOW_PEERS)}
    ours = candidates.pop(OURS)
    samples: dict[str, list[float]] = {name: [] for name in candidates}

    def peers() -> None:
        for name, call in candidates.items():
            start = time.perf_counter()
            result = call()
            samples[name].append(time.perf_counter() - start)
            del result  # not before: nor is freeing ours' counted

    seconds = _round(peers, ours)  # warms up and compiles
    if seconds < LONG:
        seconds = _round(peers, ours)  # a sample of the time
    for values in samples.values():
        values.clear()
    least = min(case.rounds, QUICK) if quick else case.rounds
    rounds = max(least, min(1000, int(budget / seconds)))
    benchmark.pedantic(ours, setup=peers, rounds=rounds)
    samples[OURS] = benchmark.stats.stats.data
    return {name: Timing.of(values) for name, values in samples.items()}


def _round(*calls: Callable[[], object]) -> float:
    """Seconds that the calls take."""
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start
