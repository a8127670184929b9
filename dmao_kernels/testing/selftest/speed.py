"""What is timed: every operation at the size of a large model, beside what PyTorch has for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dmao_kernels
from dmao_kernels.testing.selftest.problems import Draw

OURS = "ours"
COMPONENTS = 8


@dataclass(frozen=True)
class Sizes:
    """Of a Conformer: rows are utterances times frames."""

    utterances: int = 32
    frames: int = 512
    width: int = 512
    blocks: int = 12
    heads: int = 8
    kernel: int = 31

    @property
    def rows(self) -> int:
        """Of all utterances."""
        return self.utterances * self.frames


FULL = Sizes()
SMALL = Sizes(utterances=8, frames=256, width=256, blocks=4)
TINY = Sizes(utterances=2, frames=64, width=64, blocks=1, heads=2, kernel=7)


@dataclass
class Race:
    """One problem, "ours" and the peers, and what any of them has to compute and to move."""

    op: str
    name: str
    calls: Mapping[str, Callable[[], object]]
    flops: float = 0.0
    bytes: float = 0.0


def _trained(
    inputs: list[Tensor], grad: Tensor, function: Callable[..., Tensor], *arguments: Any
) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(*inputs, *arguments), inputs, grad)


def _peers(
    inputs: list[Tensor], grad: Tensor, eager: Callable[..., Tensor], compile: bool
) -> dict[str, Callable[[], object]]:
    calls = {"eager": _trained(inputs, grad, eager)}
    if compile:
        calls["torch.compile"] = _trained(inputs, grad, torch.compile(eager, dynamic=False))
    return calls


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in tensors]


def _ffn(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    rows, d, hidden = sizes.rows, sizes.width, 4 * sizes.width
    inputs = _leaves(
        draw(rows, d), draw(hidden, d, scale=d**-0.5), draw(hidden), draw(d, hidden, scale=hidden**-0.5), draw(d)
    )
    grad, seed, half = draw(rows, d), draw.seed(), draw.ids(*range(COMPONENTS // 2))

    def eager(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.linear(F.dropout(F.silu(F.linear(x, w1, b1)), 0.1), w2, b2)

    def ours(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, live: Tensor | None = None) -> Tensor:
        return dmao_kernels.component_ffn(x, w1, b1, w2, b2, live, components=COMPONENTS, p=0.1, seed=seed)

    peers = _peers(inputs, grad, eager, compile)
    flops = 12.0 * rows * d * hidden
    yield Race("component_ffn", "training, all live", {OURS: _trained(inputs, grad, ours), **peers}, flops)
    calls = {OURS: _trained(inputs, grad, ours, half), "all live": _trained(inputs, grad, ours)}
    yield Race("component_ffn", "training, half live", calls, flops / 2)
    detached = [tensor.detach() for tensor in inputs]
    calls = {
        OURS: lambda: dmao_kernels.component_ffn(*detached, components=COMPONENTS),
        "eager": lambda: F.linear(F.silu(F.linear(*detached[:3])), *detached[3:]),
    }
    yield Race("component_ffn", "inference", calls, flops / 3)


def _linear(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    rows, d, out = sizes.rows, sizes.width, 2 * sizes.width
    inputs, grad = _leaves(draw(rows, d), draw(out, d, scale=d**-0.5), draw(out)), draw(rows, out)
    mask = draw.blocks(-(-out // 64), -(-d // 64), 64)
    eager = {"dense": _trained(inputs, grad, F.linear)}
    for name, chosen, share in (("half of the blocks live", mask, mask.density), ("no mask", None, 1.0)):
        calls = {OURS: _trained(inputs, grad, dmao_kernels.masked_linear, chosen), **eager}
        yield Race("masked_linear", name, calls, 6.0 * rows * d * out * share)


def _attention(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    batch, frames, heads, head = sizes.utterances, sizes.frames, sizes.heads, sizes.width // sizes.heads
    inputs = _leaves(*(draw(batch, frames, heads, head) for _ in range(3)))
    grad = draw(batch, frames, heads, head)
    lengths = torch.linspace(frames / 4, frames, batch).int().to(draw.device)
    sees = (torch.arange(frames, device=draw.device) < lengths[:, None])[:, None, None]

    def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    flops = 14.0 * batch * heads * frames**2 * head  # 4 forward, 10 backward, which forms the scores anew
    calls = {OURS: _trained(inputs, grad, _our_attention), "SDPA": _trained(inputs, grad, sdpa)}
    yield Race("block_attention", "full length", calls, flops)
    calls = {
        OURS: _trained(inputs, grad, lambda q, k, v: _our_attention(q, k, v, lengths=lengths)),
        "SDPA, padding masked": _trained(inputs, grad, sdpa, sees),
    }
    share = float((lengths.double() / frames).square().mean())
    yield Race("block_attention", "lengths of a quarter to all", calls, flops * share)


def _our_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return dmao_kernels.block_attention(q, k, v, **options)


def _relative_attention(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    batch, frames, heads, head = max(1, sizes.utterances // 4), sizes.frames, sizes.heads, sizes.width // sizes.heads
    inputs = _leaves(
        *(draw(batch, frames, heads, head) for _ in range(3)),
        draw(2 * frames - 1, heads, head),
        draw(heads, head),
        draw(heads, head),
    )
    grad = draw(batch, frames, heads, head)

    def ours(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, content: Tensor, position: Tensor) -> Tensor:
        return _our_attention(q, k, v, rel_pos=positions, content_bias=content, position_bias=position)

    def eager(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, content: Tensor, position: Tensor) -> Tensor:
        by_position = torch.einsum("bihd,rhd->bhir", q + position, positions)
        padded = F.pad(by_position, (1, 0)).view(batch, heads, 2 * frames, frames)[:, :, 1:]  # Transformer-XL's shift
        bias = padded.reshape(batch, heads, frames, 2 * frames - 1)[..., :frames]
        scores = torch.einsum("bihd,bjhd->bhij", q + content, k) + bias
        return torch.einsum("bhij,bjhd->bihd", (scores * head**-0.5).softmax(-1), v)

    # Beside the 14 of attention: the positions' scores, these again backward, and two gradients. Of 2 T - 1 positions
    # every query needs T.
    flops = 22.0 * batch * heads * frames**2 * head
    calls = {OURS: _trained(inputs, grad, ours), **_peers(inputs, grad, eager, compile)}
    yield Race("block_attention", "relative positions", calls, flops)


def _convolution(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    batch, frames, d, kernel = sizes.utterances, sizes.frames, sizes.width, sizes.kernel
    inputs = _leaves(draw(batch, frames, 2 * d), draw(d, kernel, scale=kernel**-0.5), draw(d), draw(d), draw(d))
    grad = draw(batch, frames, d)

    def eager(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        x = F.conv1d(F.glu(x).transpose(1, 2), weight[:, None], bias, padding=kernel // 2, groups=d).transpose(1, 2)
        return F.silu(F.layer_norm(x, (d,), gain, shift))

    entries = batch * frames * d * draw(1).element_size()
    # Read x (values and gates), write y. Read x and the gradient of y, write that of x.
    calls = {OURS: _trained(inputs, grad, dmao_kernels.component_conv), **_peers(inputs, grad, eager, compile)}
    yield Race("component_conv", "training", calls, 0.0, (2 + 1 + 2 + 1 + 2) * entries)


def _residual(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    rows, d = sizes.rows, sizes.width
    x, y, weight, bias = _leaves(draw(rows, d), draw(rows, d), draw(d), draw(d))
    grad, seed, entries = draw(rows, d), draw.seed(), rows * d * draw(1).element_size()

    def eager(x: Tensor, y: Tensor) -> Tensor:
        return x + F.dropout(y, 0.1)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return dmao_kernels.dropout_add(x, y, p=0.1, seed=seed)

    calls = {OURS: _trained([x, y], grad, ours), **_peers([x, y], grad, eager, compile)}
    yield Race("dropout_add", "training", calls, 0.0, 5 * entries)

    def eager_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = eager(x, y)
        return torch.stack([total, F.layer_norm(total, (d,), weight, bias)])

    def our_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.stack(dmao_kernels.dropout_add_layer_norm(x, y, weight, bias, p=0.1, seed=seed))

    inputs, both = [x, y, weight, bias], torch.stack([grad, grad])
    calls = {OURS: _trained(inputs, both, our_norm), **_peers(inputs, both, eager_norm, compile)}
    # The stack is a copy of two arrays that all of them make.
    yield Race("dropout_add_layer_norm", "training", calls, 0.0, (9 + 4) * entries)


def _packing(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    x = draw(sizes.utterances, sizes.frames, sizes.width)
    lengths = torch.linspace(sizes.frames / 4, sizes.frames, sizes.utterances).int().to(draw.device)
    valid = torch.arange(sizes.frames, device=draw.device) < lengths[:, None]
    packed, offsets = dmao_kernels.pack(x, lengths)
    places = valid.flatten().nonzero()[:, 0]  # ready, as our offsets are

    def padded() -> Tensor:
        return torch.zeros_like(x).flatten(0, 1).index_copy_(0, places, packed).view(x.shape)

    calls = {OURS: lambda: dmao_kernels.unpack(packed, offsets, sizes.frames), "index_copy": padded}
    yield Race("unpack", "", calls, 0.0, packed.nbytes + x.nbytes)
    # Both wait for the device, which tells the number of rows: times with the host's share.
    calls = {OURS: lambda: dmao_kernels.pack(x, lengths)[0], "index": lambda: x[valid]}
    yield Race("pack", "", calls, 0.0, 2 * packed.nbytes)


class _Model:
    """All scored tensors of a model, as [repeats, components, run]."""

    def __init__(self, draw: Draw, sizes: Sizes) -> None:
        d = sizes.width
        shapes = [
            (1, COMPONENTS, 4 * d * d // COMPONENTS),
            (d, COMPONENTS, 4 * d // COMPONENTS),
            (1, COMPONENTS, 4 * d // COMPONENTS),
        ] * 2
        shapes += [(1, COMPONENTS, d * d // COMPONENTS)] * 3 + [(d, COMPONENTS, d // COMPONENTS)] * 2
        shapes += [(2, COMPONENTS, d * d // COMPONENTS), (1, COMPONENTS, d * sizes.kernel // COMPONENTS)]
        self.shapes = shapes * sizes.blocks
        self.weights, self.grads = ([draw(*shape) for shape in self.shapes] for _ in range(2))
        self.segments = torch.tensor([(i, *shape, i * COMPONENTS) for i, shape in enumerate(self.shapes)])
        self.ema = torch.zeros(COMPONENTS * len(self.shapes), device=draw.device)
        self.inverse_count = torch.ones_like(self.ema)
        self.entries = sum(weight.numel() for weight in self.weights)
        self.itemsize = self.weights[0].element_size()

    def scores(self) -> None:
        dmao_kernels.importance_(self.ema, self.weights, self.grads, self.segments, self.inverse_count)

    def eager_scores(self) -> None:
        """A loop over the tensors, each reduced by PyTorch."""
        for i, (weight, grad) in enumerate(zip(self.weights, self.grads, strict=True)):
            part = self.ema[i * COMPONENTS : (i + 1) * COMPONENTS]
            part.mul_(0.99).add_((weight * grad).abs().sum((0, 2), dtype=torch.float32), alpha=0.01)


def _importance(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    model = _Model(draw, sizes)
    calls = {OURS: model.scores, "loop over tensors": model.eager_scores}
    yield Race("importance_", f"{len(model.shapes)} tensors", calls, 0.0, 2 * model.entries * model.itemsize)


def _adamw(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    model = _Model(draw, sizes)
    params = [torch.nn.Parameter(weight) for weight in model.weights]
    for param, grad in zip(params, model.grads, strict=True):
        param.grad = grad
    optimizer = torch.optim.AdamW(params, lr=1e-6, fused=True)
    averages, squares = ([torch.zeros_like(weight) for weight in model.weights] for _ in range(2))
    steps = [torch.zeros(()) for _ in params]
    groups = torch.tensor([(1e-6, 0.9, 0.999, 1e-8, 1e-2, 0.0)], dtype=torch.float64)
    group_of, nothing = torch.zeros(len(params), dtype=torch.int64), model.ema[:0]

    def ours(ema: Tensor, segments: Tensor, inverse_count: Tensor) -> None:
        lists = (model.weights, model.grads, averages, squares, steps)
        dmao_kernels.adamw_importance_(*lists, groups, group_of, ema, segments, inverse_count)

    def both() -> None:
        model.eager_scores()
        optimizer.step()

    def apart() -> None:
        model.scores()
        optimizer.step()

    name, bytes = f"{len(params)} tensors", 7 * model.entries * model.itemsize
    calls = {OURS: lambda: ours(model.ema, model.segments, model.inverse_count)}
    calls |= {"fused AdamW and importance_": apart, "fused AdamW and a loop": both}
    yield Race("adamw_importance_", f"{name}, scored", calls, 0.0, bytes)
    calls = {OURS: lambda: ours(nothing, model.segments[:0], nothing), "fused AdamW": optimizer.step}
    yield Race("adamw_importance_", f"{name}, without scores", calls, 0.0, bytes)


def _gather(draw: Draw, sizes: Sizes, compile: bool) -> Iterator[Race]:
    model = _Model(draw, sizes)
    index = torch.tensor([(source, -1) for source in (0, 1, 1, 3, 4, 5, 6, 7)])
    sources = index[:, 0].to(draw.device)
    calls = {
        OURS: lambda: dmao_kernels.gather_components(model.weights, [index] * len(model.weights)),
        "index_select": lambda: [weight.index_select(1, sources) for weight in model.weights],
    }
    yield Race("gather_components", f"{len(model.shapes)} tensors", calls, 0.0, 2 * model.entries * model.itemsize)


# Each makes the problems of an operation: (random tensors, sizes, whether torch.compile takes part).
MAKERS: tuple[Callable[[Draw, Sizes, bool], Iterator[Race]], ...] = (
    _ffn,
    _linear,
    _attention,
    _relative_attention,
    _convolution,
    _residual,
    _packing,
    _importance,
    _adamw,
    _gather,
)
