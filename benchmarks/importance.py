"""importance_ against the same scores in eager PyTorch: `python -m benchmarks.importance --threads 1`.

Scored are the tensors of a Conformer encoder that the published method scores. The peers are a Python loop over them,
and torch._foreach_* where PyTorch has it. A row is printed only after the kernel passed the comparison with float64.
The last column is the bandwidth reached, as a share of what one torch.dot over equally many bytes reaches in the same
run: where that is near 1, reading the weights and gradients is all that is left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmao_kernels import cpu_capability, importance_
from dmao_kernels.ops.importance.reference import importance_reference_
from dmao_kernels.testing import assert_close_to_oracle, to_float64

from ._harness import interleaved, parser, write_results

BETA = 0.99
COMPONENTS = 4
ENCODERS = {"d=96, 8 blocks": (96, 8), "d=256, 12 blocks": (256, 12), "d=512, 12 blocks": (512, 12)}


class Problem:
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
        for peer in (self.loop, self.foreach):
            torch.testing.assert_close(peer(self.ema.clone()).double(), truth, rtol=1e-2, atol=1e-3)

    def ours(self) -> None:
        importance_(self.ema, self.weights, self.grads, self.segments, self.inverse_count, "taylor", BETA)

    def loop(self, ema: Tensor) -> Tensor:
        sums = [(w * g).abs().sum((0, 2), dtype=torch.float32) for w, g in zip(self.weights, self.grads, strict=True)]
        return ema.lerp_(torch.cat(sums) * self.inverse_count, 1 - BETA)

    def foreach(self, ema: Tensor) -> Tensor:
        products = torch._foreach_mul(self.weights, self.grads)
        torch._foreach_abs_(products)
        sums = [product.sum((0, 2), dtype=torch.float32) for product in products]
        return ema.lerp_(torch.cat(sums) * self.inverse_count, 1 - BETA)


def measure(name: str, dtype: torch.dtype, seconds: float) -> dict[str, Any]:
    """Compare all candidates on one encoder; prints and returns a row."""
    problem = Problem(*ENCODERS[name], dtype)
    problem.check()
    left, right = torch.rand(2, problem.bytes // 8)  # fp32: as many bytes as the weights and gradients have
    calls = {
        "ours": problem.ours,
        "loop": lambda: problem.loop(problem.ema),
        "foreach": lambda: problem.foreach(problem.ema),
        "read": lambda: torch.dot(left, right),
    }
    times = interleaved(calls, seconds)
    ours = times["ours"].median
    result = {
        "dtype": str(dtype)[6:],
        "encoder": name,
        "MB read": problem.bytes / 1e6,
        "ours ms": 1e3 * ours,
        "ours/loop": ours / times["loop"].median,
        "ours/foreach": ours / times["foreach"].median,
        "share of bandwidth": times["read"].median / ours,
    }
    print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else value for key, value in result.items()))
    return result


def main() -> None:
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{cpu_capability()}, {arguments.threads} threads")
    dtypes = (torch.float32, torch.bfloat16)
    rows = [measure(name, dtype, arguments.seconds) for dtype in dtypes for name in ENCODERS]
    write_results(arguments.out, "importance", rows)


if __name__ == "__main__":
    with torch.no_grad():
        main()
