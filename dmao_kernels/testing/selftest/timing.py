"""How long calls take: medians of calls in turns, each with cold caches; on a GPU what the host takes stands apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Calls = Mapping[str, Callable[[], object]]
_PAUSE = 20_000_000  # cycles, about 10 ms
_PRODUCTS = 4  # in a row, so that the first one's cold caches count less


class Timer:
    """Times calls on a device, in microseconds.

    On a GPU by its own clock, after a write of more than its caches hold, which empties them, and a pause in which the
    host queues all of the call.
    """

    def __init__(self, device: str, rounds: int, seconds: float) -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self._rounds, self._seconds = rounds, seconds
        self._flush = torch.empty(2**28 if self.on_gpu else 2**27, dtype=torch.int8, device=device)

    def medians(self, calls: Calls) -> dict[str, float]:
        """All calls in turns, for so many rounds or seconds, after two rounds that do not count."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        start = time.perf_counter()
        for round in range(-2, self._rounds):
            for name, call in calls.items():
                taken = self._time(call)
                if round >= 0:
                    times[name].append(taken)
            if round >= 2 and time.perf_counter() - start > self._seconds:
                break
        return {name: statistics.median(taken) for name, taken in times.items()}

    def host(self, call: Callable[[], object], rounds: int = 10) -> float:
        """Median microseconds until the host has queued a call on a GPU."""
        times = []
        for _ in range(rounds):
            torch.cuda._sleep(_PAUSE)
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)
            torch.cuda.synchronize()
        return statistics.median(times)

    def _time(self, call: Callable[[], object]) -> float:
        self._flush.zero_()
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        torch.cuda._sleep(_PAUSE)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) * 1e3


class Limits:
    """What the machine can do at most, measured now: bytes and flops per second."""

    def __init__(self, device: str, timer: Timer, dtypes: tuple[torch.dtype, ...], edge: int, megabytes: int) -> None:
        """edge: of the matrices that are multiplied.  megabytes: copied."""
        source = torch.ones(megabytes * 2**18, device=device)
        target = torch.empty_like(source)
        calls = {
            "copy": lambda: target.copy_(source),
            "fill": lambda: target.zero_(),
            "update": lambda: target.mul_(1.0),  # on a CPU the fastest: a copy reads the target before it writes
        }
        taken = timer.medians(calls)
        moved = {"copy": 2, "fill": 1, "update": 2}
        self.bandwidth = max(times * source.nbytes / taken[name] for name, times in moved.items()) * 1e6
        self.peak = {dtype: _peak(device, timer, dtype, edge) for dtype in dtypes}

    def floor(self, dtype: torch.dtype, flops: float, bytes: float) -> float:
        """The least microseconds in which so much can be computed and moved."""
        return max(flops / self.peak[dtype], bytes / self.bandwidth) * 1e6


def _peak(device: str, timer: Timer, dtype: torch.dtype, edge: int) -> float:
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(a, b, out=out)

    return _PRODUCTS * 2 * edge**3 / timer.medians({"mm": products})["mm"] * 1e6
