"""importance_ against the same scores in eager PyTorch: `make bench ARGS="-k importance"`.

Scored are the tensors of a Conformer encoder that the published method scores. The peers are a Python loop over their
components, one over the tensors ("by tensor"), and torch._foreach_* where PyTorch has it. Floor: one read of the
weights and one of the gradients.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.registry import Case, Problem, register
from dmao_kernels import importance_
from dmao_kernels.ops.importance.reference import importance_reference_
from dmao_kernels.testing import assert_close_to_oracle, to_float64

BETA = 0.99
COMPONENTS = 4
ENCODERS = {"d=96, 8 blocks": (96, 8), "d=256, 12 blocks": (256, 12), "d=512, 12 blocks": (512, 12)}


class Encoder:
    """Weights and gradients of an encoder, their segments, and the averages of all components."""

    def __init__(self, width: int, blocks: int, dtype: torch.dtype) -> None:
        # (repeats, components, run) of ffn1.w1, conv.pointwise1, attention.out and ffn2.w1
        inner = width * width
        block = [(1, COMPONENTS, inner), (2, COMPONENTS, inner // COMPONENTS)]
        block += [(width, COMPONENTS, width // COMPONENTS), (1, COMPONENTS, inner)]
        self.shapes = block * blocks
        generator = torch.Generator().manual_seed(0)
        self.weights, self.grads = (
            [torch.randn(shape, generator=generator).to(dtype) for shape in self.shapes] for _ in range(2)
        )
        rows = [(i, *shape, i * COMPONENTS) for i, shape in enumerate(self.shapes)]
        self.segments = torch.tensor(rows, dtype=torch.int64)
        counts = [repeats * run for repeats, components, run in self.shapes for _ in range(components)]
        self.inverse_count = 1 / torch.tensor(counts, dtype=torch.float32)
        self.ema = torch.rand(len(counts), generator=generator)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.weights, *self.grads))

    def check(self) -> None:
        """Raises AssertionError unless the kernel is as close to float64 as PyTorch is."""
        ours, torchs, truth = self.ema.clone(), self.ema.clone(), self.ema.double()
        rest = (self.weights, self.grads, self.segments, self.inverse_count)
        importance_(ours, *rest, "taylor", BETA)
        importance_reference_(torchs, *rest, "taylor", BETA)
        importance_reference_(truth, *to_float64(rest), "taylor", BETA)
        assert_close_to_oracle(ours, torchs, truth)
        for peer in (self.loop, self.by_tensor, self.foreach):
            torch.testing.assert_close(peer(self.ema.clone()).double(), truth, rtol=1e-2, atol=1e-3)

    def ours(self) -> None:
        importance_(self.ema, self.weights, self.grads, self.segments, self.inverse_count, "taylor", BETA)

    def loop(self, ema: Tensor) -> Tensor:
        sums = [
            (a * b).abs().sum(dtype=torch.float32)
            for w, g in zip(self.weights, self.grads, strict=True)
            for a, b in zip(w.unbind(1), g.unbind(1), strict=True)
        ]
        return ema.lerp_(torch.stack(sums) * self.inverse_count, 1 - BETA)

    def by_tensor(self, ema: Tensor) -> Tensor:
        sums = [(w * g).abs().sum((0, 2), dtype=torch.float32) for w, g in zip(self.weights, self.grads, strict=True)]
        return ema.lerp_(torch.cat(sums) * self.inverse_count, 1 - BETA)

    def foreach(self, ema: Tensor) -> Tensor:
        products = torch._foreach_mul(self.weights, self.grads)
        torch._foreach_abs_(products)
        sums = [product.sum((0, 2), dtype=torch.float32) for product in products]
        return ema.lerp_(torch.cat(sums) * self.inverse_count, 1 - BETA)


def make(width: int, blocks: int, dtype: torch.dtype) -> Problem:
    encoder = Encoder(width, blocks, dtype)
    candidates = {"ours": encoder.ours}
    peers = {"loop": encoder.loop, "by tensor": encoder.by_tensor, "foreach": encoder.foreach}
    candidates |= {name: partial(peer, encoder.ema) for name, peer in peers.items()}
    return Problem(candidates, encoder.check, bytes=encoder.bytes)


for dtype in (torch.float32, torch.bfloat16):
    for name, (width, blocks) in ENCODERS.items():
        register(
            Case(
                "importance_",
                name,
                partial(make, width, blocks, dtype),
                dtype=dtype,
                targets={"loop": 0.45, "limit": 1 / 0.75},
                quick=width == 256 and dtype == torch.float32,
            )
        )
