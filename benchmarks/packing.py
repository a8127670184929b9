"""pack and unpack against what is written by hand for them: `make bench ARGS="-k packing"`.

"eager" is the usual way, indexing with a mask and pad_sequence; "by index" copies rows by their places and is the
faster one with gradients: pack finds them from the lengths, as ours does its offsets, unpack gets either.
Floor: the packed rows read and the result written, once each way with gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.registry import Case, Problem, register
from dmao_kernels import pack, unpack

SHAPES = ((16, 300, 384), (4, 120, 384))


def make(operation: str, batch: int, frames: int, width: int, dtype: torch.dtype, backward: bool) -> Problem:
    """Lengths between half of the frames and all of them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(frames // 2, frames + 1, (batch,), generator=generator, dtype=torch.int32)
    lengths[0] = frames
    parts: list[int] = lengths.tolist()

    def inside() -> Tensor:
        return torch.arange(frames) < lengths[:, None]

    mask = inside()
    padded = torch.randn(batch, frames, width, generator=generator).to(dtype)
    packed, offsets = pack(padded, lengths)
    x = (padded if operation == "pack" else packed).requires_grad_()
    grad = torch.randn(packed.shape if operation == "pack" else padded.shape, generator=generator).to(dtype)

    def run(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(function(x), x, grad)) if backward else lambda: function(x)

    def places() -> Tensor:
        return inside().flatten().nonzero()[:, 0]

    ready = places()
    functions: dict[str, Callable[[Tensor], Tensor]]
    if operation == "pack":
        functions = {
            "ours": lambda x: pack(x, lengths)[0],
            "eager": lambda x: x[mask],
            "by index": lambda x: x.flatten(0, 1).index_select(0, places()),
        }
    else:
        functions = {
            "ours": lambda x: unpack(x, offsets, frames),
            "eager": lambda x: pad_sequence(list(x.split(parts)), batch_first=True),
            "by index": lambda x: (
                x.new_zeros(batch * frames, width).index_copy_(0, ready, x).view(batch, frames, width)
            ),
        }

    def gate() -> None:
        results = [function(x) for function in functions.values()]
        gradients = [torch.autograd.grad(result, x, grad)[0] for result in results]
        for first, *others in (results, gradients):
            assert all(torch.equal(first, other) for other in others)

    both = (packed.numel() + (packed if operation == "pack" else padded).numel()) * x.element_size()
    other = (packed.numel() + (padded if operation == "pack" else packed).numel()) * x.element_size()
    return Problem({name: run(function) for name, function in functions.items()}, gate, bytes=both + backward * other)


for operation, shape, dtype, backward in itertools.product(
    ("pack", "unpack"), SHAPES, (torch.float32, torch.bfloat16), (False, True)
):
    if dtype == torch.bfloat16 and shape != SHAPES[0]:
        continue
    direction = "fwd+bwd" if backward else "fwd"
    register(
        Case(
            "packing",
            f"{operation} {'x'.join(map(str, shape))} {direction}",
            partial(make, operation, *shape, dtype, backward),
            dtype=dtype,
            targets={"eager": 1.0, "by index": 1.0},
            quick=shape == SHAPES[0] and dtype == torch.float32,
        )
    )
