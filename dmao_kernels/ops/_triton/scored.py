"""What scoring in Triton shares: segments as pieces of one launch, and the way of the pieces' sums into the averages.

Floor: the sums are one number per 8192 entries of a tensor of few long runs, one per 32 entries of another one: at most
3 % of what is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.pieces import Cut
from dmao_kernels.ops._triton.tables import upload

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_PARTS = tl.constexpr(4)
_BLOCK = tl.constexpr(256)


@dataclass(frozen=True)
class Scored:
    """A tensor that is scored, its cut, and where the sums of its pieces begin."""

    tensor: int
    cut: Cut
    sums: int


class Sums:
    """The sums of the pieces of all scored tensors, and which of them belong to which component."""

    def __init__(self, rows: Sequence[Sequence[int]], components: int, device: torch.device) -> None:
        """rows: of `segments`, of tensors that have entries and are scored."""
        self.device = device
        self.scored: list[Scored] = []
        self.count = 0
        parts, owners = (
            [torch.empty(0, 4, dtype=torch.int64, device="cpu")],
            [torch.empty(0, dtype=torch.int64, device="cpu")],
        )
        for tensor, repeats, own, run, first in rows:
            cut = Cut.of(repeats, own, run)
            parts.append(_parts(cut, self.count, repeats, own, run))
            owners.append(torch.arange(first, first + own, device="cpu"))
            self.scored.append(Scored(tensor, cut, self.count))
            self.count += cut.sums
        owner = torch.cat(owners)
        ends = owner.bincount(minlength=components).cumsum(0)
        self._parts = upload(torch.cat(parts)[owner.argsort(stable=True)], device)
        self._ends = upload(torch.cat([ends.new_zeros(1), ends]), device)

    def average_(self, ema: Tensor, sums: Tensor, inverse_count: Tensor, beta: float) -> None:
        """Takes the sums into the averages of the components that are scored."""
        average_kernel[(ema.numel(),)](ema, sums, inverse_count, self._parts, self._ends, beta, 1 - beta, num_warps=1)


def _parts(cut: Cut, first: int, repeats: int, components: int, run: int) -> Tensor:
    """Of every component [components, 4], where its sums stand: the first one, how many rows, their stride, columns."""
    rows, columns = (repeats, cut.down) if cut.folded else (cut.down, run)
    begin = first + torch.arange(components, device="cpu") * columns
    shape = torch.tensor([rows, components * columns, columns], device="cpu").expand(components, 3)
    return torch.cat([begin[:, None], shape], 1)


@triton.jit
def terms_of(weight, grad, METRIC: tl.constexpr):
    """What the entries add to the score of their component."""
    if METRIC == "gradient":
        terms = tl.abs(grad)
    elif METRIC == "magnitude":
        terms = tl.abs(weight)
    elif METRIC == "signed":
        terms = weight * grad
    else:
        terms = tl.abs(weight * grad)
    return terms


@kernel()
def average_kernel(ema, sums, inverse_count, parts, ends, beta, rest):
    """One component: ema <- beta ema + rest * mean, where anything was scored and the mean is finite."""
    component = tl.program_id(0)
    begin, end = tl.load(ends + component), tl.load(ends + component + 1)
    total = tl.zeros([_BLOCK], tl.float32)
    for i in range(begin, end):
        part = parts + i * _PARTS
        first, rows, stride, columns = tl.load(part), tl.load(part + 1), tl.load(part + 2), tl.load(part + 3)
        for j in range(0, rows * columns, _BLOCK):
            place = j + tl.arange(0, _BLOCK)
            total += tl.load(
                sums + first + place // columns * stride + place % columns, mask=place < rows * columns, other=0.0
            )
    mean = tl.sum(total, 0) * tl.load(inverse_count + component)
    keeps = (begin == end) | ~(tl.abs(mean) < float("inf"))
    average = tl.load(ema + component)
    tl.store(ema + component, tl.where(keeps, average, beta * average + rest * mean))
