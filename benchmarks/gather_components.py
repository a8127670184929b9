"""gather_components, the arithmetic of an event, against the same in eager PyTorch: `make bench ARGS="-k gather"`.

A quarter of the components of a Conformer of 12 blocks and width 384 goes and as many are copied: parameters, gradients
and both moments. The peer takes index_select tensor by tensor and writes the shares of copies into the result. Floor:
what stays is read once, the shares too, and the new tensors are written; page faults of new memory come on top.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.registry import Case, Problem, register
from dmao_kernels import gather_components

D, COMPONENTS, BLOCKS = 384, 4, 12
UNIT = D * D // COMPONENTS
# (repeats, run, whether copies share it) of the weights, w1 and w2 of both feed-forwards, both pointwise convolutions
BLOCK = [(1, 4 * UNIT, False), (D, D, True)] * 2 + [(2, UNIT, False), (D, D // COMPONENTS, True)]
SOURCES = [0, 1, 1, 3]


class Event:
    """Parameters, gradients and moments; of the weights behind outputs the copies' shares are given."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        moved = torch.tensor([(source, -1) for source in SOURCES])
        shared = torch.tensor([(0, -1), (-1, 0), (1, 0), (3, -1)])
        self.tensors: list[Tensor] = []
        self.index: list[Tensor] = []
        self.given: list[Tensor | None] = []
        for repeats, run, is_output in BLOCK * BLOCKS:
            for kind in ("parameter", "gradient", "exp_avg", "exp_avg_sq"):
                x = torch.randn(repeats, COMPONENTS, run, generator=generator).to(dtype)
                share = is_output and kind == "parameter"
                self.tensors.append(x)
                self.index.append(shared if share else moved)
                self.given.append(0.6 * x[:, 1:2] if share else None)

    def ours(self) -> list[Tensor]:
        return gather_components(self.tensors, self.index, self.given)

    def eager(self) -> list[Tensor]:
        sources = torch.tensor(SOURCES)
        results = []
        for x, given in zip(self.tensors, self.given, strict=True):
            made = x.index_select(1, sources)
            if given is not None:
                whole = x[:, 1].float()
                made[:, 1:2] = given
                made[:, 2] = (whole - given[:, 0].float()).to(x.dtype)
            results.append(made)
        return results

    def check(self) -> None:
        """Raises AssertionError unless all tensors are the same, to the bit."""
        for found, expected in zip(self.ours(), self.eager(), strict=True):
            assert torch.equal(found, expected)


def make(dtype: torch.dtype) -> Problem:
    event = Event(dtype)
    read, written = len(set(SOURCES)), len(SOURCES)
    moved = sum(x.nbytes for x in event.tensors) * (read + written) // COMPONENTS
    moved += sum(given.nbytes for given in event.given if given is not None)
    return Problem({"ours": event.ours, "eager": event.eager}, event.check, bytes=moved)


for dtype in (torch.float32, torch.bfloat16):
    register(
        Case(
            "gather_components",
            f"d={D}, {BLOCKS} blocks",
            partial(make, dtype),
            dtype=dtype,
            targets={"eager": 0.85},
            quick=dtype == torch.float32,
        )
    )
