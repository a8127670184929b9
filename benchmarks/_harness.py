"""Interleaved timing: all candidates in one process, in turns, so that a disturbance meets each of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, and the median absolute deviation as a share of it."""

    median: float
    spread: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        median = statistics.median(samples)
        return cls(median, statistics.median(abs(value - median) for value in samples) / median)

    def __str__(self) -> str:
        return f"{1e3 * self.median:8.2f} ms +-{100 * self.spread:2.0f}%"


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float = 1.5) -> dict[str, Timing]:
    """Times every candidate in turns, for about `seconds` in all and at least 5 rounds."""
    for call in candidates.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: Timing.of(values) for name, values in samples.items()}
