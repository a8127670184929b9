"""The registry of benchmark cases. To add some, write benchmarks/<op>.py; nothing else has to know of it.

    from functools import partial
    import torch
    from benchmarks.registry import Case, Problem, register

    def make(tokens: int, dtype: torch.dtype) -> Problem:
        x = torch.randn(tokens, 384).to(dtype)                    # random, made when the case runs
        return Problem(
            candidates={"ours": lambda: foo(x), "eager": lambda: foo_eager(x)},
            gate=lambda: assert_close_to_oracle(foo(x), foo_eager(x), foo_eager(x.double())),
            flops=2 * tokens * 384,                               # what any implementation has to compute ...
            bytes=2 * x.nbytes,                                   # ... and to move from and to memory
        )

    for dtype in (torch.float32, torch.bfloat16):
        register(Case("foo", "T=2000", partial(make, 2000, dtype), dtype=dtype, targets={"eager": 0.85}, quick=True))

`make bench-quick ARGS="-k foo"` runs them. Each case is run with 1 and with 2 threads: all candidates in turns, in
one process, after the gate has passed; each peer gives a row with time of ours / time of the peer.

Conventions
    - Peers: "eager" for eager PyTorch of the same dtype, "torch.compile" (dropped from quick runs: compiling takes
      too long), else the name of the thing ("SDPA", "torch BSR", "scipy BSR"). A shrunk problem is compared with
      "ours, all live"; the target is then the share that may remain.
    - The target "limit" bounds time / floor: 1 / 0.75 asks for 75 % of the machine's limit.
    - Quick cases take at most a few seconds, gate included; all of them together have five minutes.
    - Cases that differ in density only share a `series`; the report draws it and names the break-even density.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

import benchmarks
from benchmarks._harness import Timing

OURS = "ours"
LIMIT = "limit"
SLOW_PEERS = frozenset({"torch.compile"})
FRAMEWORK = frozenset({"registry", "roofline", "report", "plots", "compare", "conftest"})
COMMANDS = frozenset({"pruning_peers", "score_exchange", "step_on_gpu"})  # which measure and print by themselves


@dataclass
class Problem:
    """Inputs, and what is done with them.

    candidates: "ours" and the peers; each callable does the same work on the same inputs (or leaves out, as ours
        may, what is masked or dead).
    gate: raises AssertionError unless ours is right; called once per number of threads, before the timing.
    flops: multiply-adds count twice; only those that the problem needs.
    bytes: least traffic with memory, reads and writes.
    reads_only: whether next to nothing is written; reading alone has a bandwidth of its own.
    absent: peers that cannot run here, with the reason; it is printed in place of a ratio.
    measure: where time in turns is not what is asked, times the candidates in about so many seconds.
    """

    candidates: dict[str, Callable[[], object]]
    gate: Callable[[], None]
    flops: float = 0.0
    bytes: float = 0.0
    reads_only: bool = False
    absent: dict[str, str] = field(default_factory=dict)
    measure: Callable[[float], dict[str, Timing]] | None = None

    def __post_init__(self) -> None:
        if OURS not in self.candidates:
            raise ValueError(f"Problem: candidates must hold {OURS!r}, got {', '.join(self.candidates)}")


@dataclass(frozen=True)
class Case:
    """One problem in one dtype.

    op, name: the operation and what tells its cases apart: sizes, options, "fwd" or "fwd+bwd".
    make: builds the inputs.
    dtype: chooses the arithmetic peak, and stands in the label.
    targets: the largest ratio allowed, by peer.
    quick: part of `make bench-quick`.
    threads: numbers of threads to run with.
    rounds: the least number of timed rounds; a round runs every candidate once.
    series, density: see above.
    """

    op: str
    name: str
    make: Callable[[], Problem]
    dtype: torch.dtype = torch.float32
    targets: Mapping[str, float] = field(default_factory=dict)
    quick: bool = False
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 5
    series: str = ""
    density: float | None = None

    def label(self, threads: int) -> str:
        """Identifies the measurement across runs."""
        kind = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]
        return f"{self.op} {self.name} {kind} T{threads}"


_CASES: dict[str, Case] = {}


def register(case: Case) -> None:
    """Adds a case. Raises ValueError when there is one of that label."""
    if case.label(0) in _CASES:
        raise ValueError(f"register: there already is a case {case.label(0)!r}")
    _CASES[case.label(0)] = case


def cases() -> list[Case]:
    """All cases of all modules of this folder, in the order of the modules' names."""
    for module in sorted(info.name for info in pkgutil.iter_modules(benchmarks.__path__)):
        if module not in FRAMEWORK | COMMANDS and not module.startswith(("_", "test_")):
            importlib.import_module(f"benchmarks.{module}")
    return list(_CASES.values())
