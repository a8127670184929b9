"""importance_ against the same scores in eager PyTorch: `make bench ARGS="-k importance"`.

Scored are the tensors of a Conformer encoder that the published method scores. The peers are a Python loop over their
components, one over the tensors ("by tensor"), and torch._foreach_* where PyTorch has it; and for its feed-forward
modules Torch-Pruning's first-order Taylor importance. Floor: one read of the weights and one of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch_pruning
from torch import Tensor, nn

from benchmarks.registry import Case, Problem, register
from dmao_kernels import importance_
from dmao_kernels.ops.importance.reference import importance_reference_
from dmao_kernels.testing import assert_close_to_oracle, to_float64

Shape = tuple[int, int, int]

BETA = 0.99
COMPONENTS = 4
ENCODERS = {"d=96, 8 blocks": (96, 8), "d=256, 12 blocks": (256, 12), "d=512, 12 blocks": (512, 12)}


class Encoder:
    """Weights and gradients of an encoder, their segments, and the averages of all components."""

    def __init__(self, layers: list[list[Shape]], dtype: torch.dtype) -> None:
        """layers: of each module the shapes (repeats, components, run) of its tensors; components span all of them."""
        self.shapes = [shape for shapes in layers for shape in shapes]
        generator = torch.Generator().manual_seed(0)
        self.weights, self.grads = (
            [torch.randn(shape, generator=generator).to(dtype) for shape in self.shapes] for _ in range(2)
        )
        firsts = [COMPONENTS * i for i, shapes in enumerate(layers) for _ in shapes]
        rows = [(i, *shape, first) for i, (shape, first) in enumerate(zip(self.shapes, firsts, strict=True))]
        self.segments = torch.tensor(rows, dtype=torch.int64)
        counts = [sum(repeats * run for repeats, _, run in shapes) for shapes in layers for _ in range(COMPONENTS)]
        self.inverse_count = 1 / torch.tensor(counts, dtype=torch.float32)
        self.ema = torch.rand(len(counts), generator=generator)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.weights, *self.grads))

    def check(self, peers: Iterable[Callable[[Tensor], Tensor]]) -> None:
        """Raises AssertionError unless the kernel is as close to float64 as PyTorch is, and the peers compute that."""
        ours, torchs, truth = self.ema.clone(), self.ema.clone(), self.ema.double()
        rest = (self.weights, self.grads, self.segments, self.inverse_count)
        importance_(ours, *rest, "taylor", BETA)
        importance_reference_(torchs, *rest, "taylor", BETA)
        importance_reference_(truth, *to_float64(rest), "taylor", BETA)
        assert_close_to_oracle(ours, torchs, truth)
        for peer in peers:
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


class TorchPruning:
    """Torch-Pruning's scores of feed-forward modules that hold the encoder's tensors, per channel, added up."""

    def __init__(self, encoder: Encoder, width: int) -> None:
        self.encoder = encoder
        modules = []
        for i in range(0, len(encoder.weights), 2):
            inner = encoder.weights[i].numel() // width
            pair = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
            for linear, weight, grad in zip(pair, encoder.weights[i : i + 2], encoder.grads[i : i + 2], strict=True):
                linear.weight = nn.Parameter(weight.view(linear.weight.shape))
                linear.weight.grad = grad.view(linear.weight.shape)
            modules.append(nn.Sequential(pair[0], nn.SiLU(), pair[1]))
        example = torch.randn(1, width, dtype=encoder.weights[0].dtype)
        graph = torch_pruning.DependencyGraph().build_dependency(nn.Sequential(*modules), example)
        prune = torch_pruning.prune_linear_out_channels
        self.groups = [graph.get_pruning_group(m[0], prune, list(range(m[0].out_features))) for m in modules]
        self.scores = torch_pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)

    def __call__(self, ema: Tensor) -> Tensor:
        sums = [self.scores(group).view(COMPONENTS, -1).sum(1, dtype=torch.float32) for group in self.groups]
        return ema.lerp_(torch.cat(sums) * self.encoder.inverse_count, 1 - BETA)


def make(width: int, blocks: int, dtype: torch.dtype) -> Problem:
    """The tensors that the published method scores: ffn1.w1, conv.pointwise1, attention.out and ffn2.w1."""
    inner = width * width
    feed_forward, convolution = [(1, COMPONENTS, inner)], [(2, COMPONENTS, inner // COMPONENTS)]
    attention = [(width, COMPONENTS, width // COMPONENTS)]
    encoder = Encoder([feed_forward, convolution, attention, feed_forward] * blocks, dtype)
    return _problem(encoder, {"loop": encoder.loop, "by tensor": encoder.by_tensor, "foreach": encoder.foreach})


def make_feed_forward(width: int, blocks: int, dtype: torch.dtype) -> Problem:
    """Both matrices of all feed-forward modules, as Torch-Pruning scores them."""
    encoder = Encoder([[(1, COMPONENTS, width * width), (width, COMPONENTS, width)]] * (2 * blocks), dtype)
    return _problem(encoder, {"Torch-Pruning": TorchPruning(encoder, width)})


def _problem(encoder: Encoder, peers: dict[str, Callable[[Tensor], Tensor]]) -> Problem:
    candidates = {"ours": encoder.ours, **{name: partial(peer, encoder.ema) for name, peer in peers.items()}}
    return Problem(candidates, partial(encoder.check, peers.values()), bytes=encoder.bytes, reads_only=True)


for dtype in (torch.float32, torch.bfloat16):
    for name, (width, blocks) in ENCODERS.items():
        quick = width == 256 and dtype == torch.float32
        targets = {"loop": 0.45, "limit": 1 / 0.75}
        register(
            Case("importance_", name, partial(make, width, blocks, dtype), dtype=dtype, targets=targets, quick=quick)
        )
        whole, targets = partial(make_feed_forward, width, blocks, dtype), {"Torch-Pruning": 1.0}
        register(Case("importance_", f"{name}, feed-forward only", whole, dtype=dtype, targets=targets, quick=quick))
