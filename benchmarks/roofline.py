"""What the machine can do at most, measured in the same run: arithmetic peaks and memory bandwidth.

The peaks come from multiply-adds on registers (csrc/tests/peak_probe.cpp) and from torch.mm on matrices that fit
into the cache, whichever is higher, the bandwidths from that probe and from PyTorch; without a compiler from PyTorch
alone. Each is the best of several tries, measured again before every operation's cases, because a limit that a
disturbance has lowered would flatter every share of it.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmao_kernels import cpu_capability

ROOT = Path(__file__).resolve().parents[1]
TRIES = 12
ROUNDS = 20_000_000  # of the arithmetic probes: tens of milliseconds, beside which handing out the work is nothing
STREAMS = (1, 2, 4, 8)
FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma"]}
FLAGS["avx512"] = [*FLAGS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
FLAGS["avx512_bf16"] = [*FLAGS["avx512"], "-mavx512bf16"]


@dataclass(frozen=True)
class Limits:
    """Flops and bytes per second. copy and update count what is read and what is written; update writes in place."""

    float32: float
    bfloat16: float
    read: float
    copy: float
    update: float

    def floor(self, dtype: torch.dtype, flops: float, bytes: float, reads_only: bool = False) -> float:
        """The least seconds in which so much can be computed and moved; 0.0 if neither is given."""
        peak = self.bfloat16 if dtype == torch.bfloat16 else self.float32
        return max(flops / peak, bytes / (self.read if reads_only else max(self.read, self.copy, self.update)))

    def or_higher(self, other: Limits) -> Limits:
        """The higher one of each."""
        return Limits(*map(max, astuple(self), astuple(other)))


_HIGHEST: dict[int, Limits] = {}


def limits(threads: int) -> Limits:
    """The highest that `measure` has found in this process."""
    return _HIGHEST[threads] if threads in _HIGHEST else measure(threads)


def measure(threads: int) -> Limits:
    """Measures once more, as neighbours disturb a machine for minutes; PyTorch must have been set to `threads`."""
    source, target = torch.rand(2, 2**25)  # 128 MiB each, beyond any cache
    size = 4.0 * source.numel()
    float32, bfloat16 = (_matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16))
    found = Limits(
        float32,
        bfloat16,
        read=2 * size / _best(lambda: torch.dot(source, target)),
        copy=2 * size / _best(lambda: target.copy_(source)),
        update=2 * size / _best(lambda: target.mul_(0.999)),
    )
    probe = build_probe("peak")
    if probe is not None:
        found = found.or_higher(_probed(probe, source, threads))
    found = replace(found, bfloat16=max(found.bfloat16, found.float32))
    _HIGHEST[threads] = found.or_higher(_HIGHEST.get(threads, found))
    return _HIGHEST[threads]


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _matmul_peak(dtype: torch.dtype) -> float:
    """Flops per second of the best of some products that fit into the second level cache."""
    best = 0.0
    for rows, depth, columns in ((192, 384, 192), (256, 256, 256), (512, 512, 512)):
        a, b = torch.rand(rows, depth).to(dtype), torch.rand(depth, columns).to(dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        best = max(best, 2.0 * rows * depth * columns / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)))
    return best


@functools.cache
def build_probe(name: str) -> ctypes.CDLL | None:
    """csrc/tests/NAME_probe.cpp, compiled for the instruction set in use, or None without a compiler."""
    compiler = next(filter(None, map(shutil.which, ["c++", "g++", "clang++"])), None)
    capability = cpu_capability()
    if compiler is None or capability is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{name}_probe.so"
        command = [compiler, "-std=c++20", "-O3", "-shared", "-fPIC", *FLAGS[capability]]
        command += [f"-I{ROOT}/csrc/include", f"-DDMAO_ISA_NAMESPACE={capability}"]
        subprocess.run([*command, str(ROOT / f"csrc/tests/{name}_probe.cpp"), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def _probed(probe: ctypes.CDLL, memory: Tensor, threads: int) -> Limits:
    """What the probe reaches on so many threads."""
    part = memory.numel() // threads // 1024 * 1024
    starts = [ctypes.c_void_p(memory.data_ptr() + 4 * part * i) for i in range(threads)]

    def rate(name: str, arguments: Callable[[int], tuple[Any, ...]]) -> float:
        function = getattr(probe, name)
        function.restype = ctypes.c_double

        def run(i: int) -> float:
            sink = torch.tensor([0.999, 0.001] + [0.0] * 14)  # a cache line of its own
            return function(*arguments(i), ctypes.c_void_p(sink.data_ptr()))

        return max(_rate(pool, run, threads) for _ in range(TRIES))

    def bandwidth(name: str) -> float:
        elements = ctypes.c_int64(part)
        return max(rate(name, lambda i, s=s: (starts[i], elements, ctypes.c_int64(s))) for s in STREAMS)

    rounds = ctypes.c_int64(ROUNDS)
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
        return Limits(
            rate("peak_float32", lambda _: (rounds,)),
            rate("peak_bfloat16", lambda _: (rounds,)),
            read=bandwidth("read_memory"),
            copy=0.0,
            update=bandwidth("update_memory"),
        )


def _rate(pool: ThreadPoolExecutor, run: Callable[[int], float], threads: int) -> float:
    start = time.perf_counter()
    done = sum(pool.map(run, range(threads)))
    return done / (time.perf_counter() - start)
