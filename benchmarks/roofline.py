"""What the machine can do at most, measured in the same run: arithmetic peaks and memory bandwidth.

The peaks come from multiply-adds on registers (csrc/tests/peak_probe.cpp) and from torch.mm on matrices that fit
into the cache, whichever is higher; without a compiler from torch.mm alone. Each is the best of several tries,
because a limit that a disturbance has lowered would flatter every share of it.
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
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmao_kernels import cpu_capability

ROOT = Path(__file__).resolve().parents[1]
TRIES = 12
FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma"]}
FLAGS["avx512"] = [*FLAGS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
FLAGS["avx512_bf16"] = [*FLAGS["avx512"], "-mavx512bf16"]


@dataclass(frozen=True)
class Limits:
    """Flops and bytes per second. copy counts what is read and what is written."""

    float32: float
    bfloat16: float
    read: float
    copy: float

    def floor(self, dtype: torch.dtype, flops: float, bytes: float) -> float:
        """The least seconds in which so much can be computed and moved; 0.0 if neither is given."""
        peak = self.bfloat16 if dtype == torch.bfloat16 else self.float32
        return max(flops / peak, bytes / max(self.read, self.copy))


@functools.cache
def limits(threads: int) -> Limits:
    """Measured once per process and number of threads, which PyTorch must have been set to."""
    source, target = torch.rand(2, 2**25)  # 128 MiB each, beyond any cache
    read, copy = 4.0 * source.numel(), 8.0 * source.numel()
    seconds = {
        "copy": _best(lambda: target.copy_(source)),
        "read": _best(lambda: torch.dot(source, target)) / 2,
    }
    float32, bfloat16 = (_matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16))
    found = Limits(float32, bfloat16, read / seconds["read"], copy / seconds["copy"])
    probe = build_probe("peak")
    if probe is not None:
        found = _with_probe(probe, found, source, threads)
    return Limits(found.float32, max(found.bfloat16, found.float32), found.read, found.copy)


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


def _with_probe(probe: ctypes.CDLL, found: Limits, source: Tensor, threads: int) -> Limits:
    """The higher of what was found and what the probe reaches on so many threads."""
    part = source.numel() // threads // 64 * 64
    for name in ("peak_float32", "peak_bfloat16", "read_memory"):
        getattr(probe, name).restype = ctypes.c_double
    starts = [ctypes.c_void_p(source.data_ptr() + 4 * part * i) for i in range(threads)]
    rounds, elements = ctypes.c_int64(200_000), ctypes.c_int64(part)

    def sink() -> Tensor:
        return torch.tensor([0.999, 0.001] + [0.0] * 14)  # a cache line of its own

    def peak(name: str) -> float:
        def run(_: int) -> float:
            values = sink()
            return getattr(probe, name)(rounds, ctypes.c_void_p(values.data_ptr()))

        return max(_rate(pool, run, threads) for _ in range(TRIES))

    def read(i: int) -> float:
        values = sink()
        return probe.read_memory(starts[i], elements, ctypes.c_void_p(values.data_ptr()))

    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
        bandwidth = max(_rate(pool, read, threads) for _ in range(TRIES))
        float32, bfloat16 = peak("peak_float32"), peak("peak_bfloat16")
    return Limits(max(found.float32, float32), max(found.bfloat16, bfloat16), max(found.read, bandwidth), found.copy)


def _rate(pool: ThreadPoolExecutor, run: Callable[[int], float], threads: int) -> float:
    start = time.perf_counter()
    done = sum(pool.map(run, range(threads)))
    return done / (time.perf_counter() - start)
