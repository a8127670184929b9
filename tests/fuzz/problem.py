"""Random problems: tensors of any size, strides and alignment between NaN; and what is asked of an operation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmao_kernels.testing import assert_close_to_oracle, nan_filled_empty, outputs_and_gradients, to_float64
from dmao_kernels.testing.oracle import in_own_memory
from tests.ops.batches import offsets_of

Results = dict[str, Tensor]

# PyTorch's own error, which the rule doubles, is by chance zero in some of thousands of problems.
SLACK = 4.0
_MARGIN = 67  # elements beside a tensor: odd, so that no alignment is likely


class Draw:
    """The random choices of one problem, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.buffers: list[Tensor] = []

    def one_of(self, *values: Any) -> Any:
        return self.random.choice(values)

    def chance(self, p: float = 0.5) -> bool:
        return self.random.random() < p

    def size(self, most: int, least: int = 0) -> int:
        """Small, beside a multiple of 8, or anything, in [least, most]."""
        kind = self.random.randrange(3)
        if kind == 0:
            return self.random.randint(least, min(most, least + 3))
        if kind == 1:
            return max(least, min(most, 8 * self.random.randint(0, most // 8) + self.random.randint(-1, 1)))
        return self.random.randint(least, most)

    def dtype(self) -> torch.dtype:
        return self.one_of(torch.float32, torch.bfloat16)

    def seed(self) -> Tensor:
        return torch.tensor([self.random.getrandbits(63)])

    def some(self, count: int) -> Tensor:
        """int32: some of range(count), ascending; often none or all."""
        p = self.one_of(0.0, 0.3, 0.7, 1.0)
        return torch.tensor([i for i in range(count) if self.chance(p)], dtype=torch.int32)

    def lengths(self, batch: int, frames: int) -> Tensor:
        """int32 [batch], each in [0, frames]."""
        return torch.tensor([self.one_of(frames, self.size(frames)) for _ in range(batch)], dtype=torch.int32)

    def tensor(
        self,
        *shape: int,
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
        grad: bool = True,
        strides: Sequence[str] = ("contiguous", "wide rows", "transposed", "spaced"),
    ) -> Tensor:
        """Normal random numbers; laid out in one of the ways of `strides`, at any offset, with NaN all around."""
        kind = self.one_of(*strides)
        order = list(range(len(shape)))
        if kind == "transposed":
            self.random.shuffle(order)
        step = self.one_of(2, 3) if kind == "spaced" else 1
        stride = [0] * len(shape)
        for i, axis in enumerate(reversed(order)):
            stride[axis] = step
            step *= max(shape[axis], 1)
            if kind == "wide rows" and i == 0:
                step += self.size(40)
        offset = _MARGIN + self.random.randrange(8)
        span = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1 if 0 not in shape else 0
        buffer = torch.full((offset + span + _MARGIN,), torch.nan, dtype=dtype)
        view = buffer.as_strided(shape, stride, offset)
        view.copy_(torch.randn(shape, generator=self.generator) * scale)
        self.buffers.append(buffer)
        return view.requires_grad_(grad)


@dataclass
class Problem:
    """The same results three times: by the operation, by PyTorch in the same dtype, and in float64.

    magnitude: of what is added up and may cancel, which leaves rounding.
    """

    ours: Callable[[], Results]
    same: Callable[[], Results]
    truth: Callable[[], Results]
    magnitude: float = 0.0


def differentiable(
    draw: Draw,
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *args: Any,
    magnitude: float = 1.0,
    rows: int | None = None,
    **kwargs: Any,
) -> Problem:
    """The output of an operation, and the gradients of all arguments that require one.

    Gradients of parameters are sums over the rows (those of the first argument) of terms of this magnitude. They
    are formed in float32; those of bfloat16 are therefore right to the rounding of the result alone.
    """
    with torch.no_grad():
        output = reference(*args, **kwargs)
    gradient = draw.tensor(*output.shape, dtype=output.dtype, grad=False)

    added = args[0].numel() / max(args[0].shape[-1], 1) if rows is None else rows

    def results(function: Callable[..., Tensor], args: Any, kwargs: Any) -> Results:
        found, gradients = outputs_and_gradients(function, *args, grad_output=gradient, **kwargs)
        return {"output": found, **{f"gradient {key}": value for key, value in gradients.items()}}

    return Problem(
        ours=lambda: results(function, args, kwargs),
        same=lambda: results(reference, in_own_memory(args), in_own_memory(kwargs)),
        truth=lambda: results(reference, to_float64(args), to_float64(kwargs)),
        magnitude=magnitude * added**0.5 if output.dtype != torch.bfloat16 else magnitude / 8,
    )


def check(draw: Draw, problem: Problem) -> None:
    """Raises AssertionError unless ours is close to the truth, the same twice, and has changed no input."""
    before = [buffer.detach().clone() for buffer in draw.buffers]
    with nan_filled_empty():
        ours, again = problem.ours(), problem.ours()
    for buffer, old in zip(draw.buffers, before, strict=True):
        assert torch.equal(_bits(buffer), _bits(old)), "an input, or memory beside it, was written"
    same, truth = problem.same(), problem.truth()
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        assert torch.equal(_bits(value), _bits(again[name])), f"{name}: two runs differ"
        largest = truth[name].nan_to_num().abs().max().item() if value.numel() else 0.0
        magnitude = max(largest, problem.magnitude)
        assert_close_to_oracle(value, same[name], truth[name], slack=SLACK, magnitude=magnitude, name=name)


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, for which NaN equals itself."""
    return (
        tensor.detach()
        .contiguous()
        .view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    )


def rows(draw: Draw, width: int, dtype: torch.dtype, frames: int) -> tuple[Tensor, dict[str, Any]]:
    """x, packed or padded with NaN beyond the lengths, and what tells its utterances apart."""
    batch = draw.size(4)
    lengths = draw.lengths(batch, frames)
    if draw.chance():
        return draw.tensor(int(lengths.sum()), width, dtype=dtype), {"offsets": offsets_of(lengths)}
    x = draw.tensor(batch, frames, width, dtype=dtype)
    if draw.chance(0.2):
        return x, {}
    with torch.no_grad():
        x[torch.arange(frames) >= lengths[:, None]] = torch.nan
    return x, {"lengths": lengths}
