"""block_attention against PyTorch's fused attention and against materialised relative positions:
`make bench ARGS="-k block_attention"`.

Peers get contiguous [B, H, T, D] and masks made beforehand; ours reads views into one projection of q, k and v.
"SDPA" computes everything, padding included; "SDPA bool mask" gets what is visible as booleans; "SDPA float bias" gets
Transformer-XL's positional term, materialised and differentiable, as float mask; "eager rel-pos" is Transformer-XL's
attention as it is usually written. Floor, for n visible pairs: 4 D n (forward) or 14 D n (with backward) flops,
with relative positions 6 D n or 22 D n.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._oracle import check
from benchmarks.registry import Case, Problem, register
from dmao_kernels import BlockMask, block_attention
from dmao_kernels.ops.block_attention.reference import block_attention_reference

BLOCK = 64
SEED = torch.tensor([1])


def relative_bias(q: Tensor, rel_pos: Tensor) -> Tensor:
    """q_i . rel_pos[T - 1 + j - i] for q [B, H, T, D] and rel_pos [2 T - 1, H, D]: [B, H, T, T].

    Dai et al. 2019, appendix B: all products, then a shift of each row by one more than the row above.
    """
    batch, heads, frames, _ = q.shape
    products = F.pad(q @ rel_pos.permute(1, 2, 0), (1, 0))
    shifted = products.view(batch, heads, 2 * frames, frames)[:, :, 1:].reshape(batch, heads, frames, -1)
    return shifted[..., :frames]


@dataclass(frozen=True)
class Setting:
    """B utterances of up to T frames, H heads of 64; what is visible, and whether positions are relative."""

    batch: int
    frames: int
    heads: int = 6
    padded: bool = False  # lengths from 40 to 100 % of T
    window: tuple[int, int] | None = None
    blocks: float | None = None  # share of the tiles that live
    relative: bool = False
    p: float = 0.0

    def __str__(self) -> str:
        parts = [f"B={self.batch} H={self.heads} T={self.frames}"]
        parts += ["lengths 40-100%"] if self.padded else []
        parts += ["window {}:{}".format(*self.window)] if self.window else []
        parts += [f"{self.blocks:.0%} of blocks"] if self.blocks else []
        parts += ["rel-pos"] if self.relative else []
        parts += [f"p={self.p}"] if self.p else []
        return " ".join(parts)


class Inputs:
    """The same values as ours takes them and as the peers do."""

    def __init__(self, setting: Setting, dtype: torch.dtype) -> None:
        batch, frames, heads, width = setting.batch, setting.frames, setting.heads, 64
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        q, k, v = (x.requires_grad_() for x in random(batch, frames, 3, heads, width).unbind(2))
        self.ours: dict[str, Any] = {"q": q, "k": k, "v": v}
        self.rows = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
        self.positions: list[Tensor] = []
        if setting.relative:
            shapes = ((2 * frames - 1, heads, width), (heads, width), (heads, width))
            self.positions = [random(*shape).requires_grad_() for shape in shapes]
            self.ours |= zip(("rel_pos", "content_bias", "position_bias"), self.positions, strict=True)
        self.visible = torch.ones(batch, 1, frames, frames, dtype=torch.bool)
        self.keys: Tensor | None = None
        position = torch.arange(frames)
        if setting.padded:
            lengths = torch.linspace(frames, 0.4 * frames, batch).to(torch.int32)
            inside = (position < lengths[:, None])[:, None]
            self.visible &= inside[..., None] & inside[:, :, None]
            self.ours |= {"lengths": lengths}
            if setting.window is None and setting.blocks is None:
                self.keys = inside[:, :, None]
        if setting.window is not None:
            left, right = setting.window
            distance = position[None, :] - position[:, None]
            self.visible &= (distance >= -left) & (distance <= right)
            self.ours |= {"window": setting.window}
        if setting.blocks is not None:
            size = -(-frames // BLOCK)
            order = torch.randperm(size * size, generator=generator).view(size, size)
            mask = BlockMask.from_dense(order < setting.blocks * size * size, BLOCK)
            self.visible &= mask.elements(frames, frames)
            self.ours |= {"block_mask": mask}
        self.grad = random(batch, frames, heads, width)
        self.row_grad = self.grad.transpose(1, 2).contiguous()
        self.p = setting.p
        if self.p:
            self.ours |= {"p": self.p, "seed": SEED}

    @property
    def mask(self) -> Tensor:
        """What peers get: a query that sees nothing sees everything instead, so that they have no NaN.

        Where lengths alone hide anything, [B, 1, 1, T]: PyTorch is faster with it than with a full mask.
        """
        if self.keys is not None:
            return self.keys
        return self.visible | ~self.visible.any(-1, keepdim=True)

    def sdpa(self, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(*self.rows, attn_mask=mask)

    def eager(self, hidden: Tensor) -> Tensor:
        """Transformer-XL, with `hidden` True where a key is not seen."""
        q, k, v = self.rows
        rel_pos, content_bias, position_bias = self.positions
        scores = (q + content_bias[:, None]) @ k.transpose(-1, -2) + relative_bias(q + position_bias[:, None], rel_pos)
        weights = (scores * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        return F.dropout(weights, self.p) @ v if self.p else weights @ v

    def float_bias(self, hidden: Tensor) -> Tensor:
        """The same through F.scaled_dot_product_attention."""
        q, k, v = self.rows
        rel_pos, content_bias, position_bias = self.positions
        bias = relative_bias(q + position_bias[:, None], rel_pos) * q.shape[-1] ** -0.5
        bias = bias.masked_fill(hidden, -torch.inf)
        return F.scaled_dot_product_attention(q + content_bias[:, None], k, v, attn_mask=bias, dropout_p=self.p)

    def check(self) -> None:
        """Raises AssertionError unless the kernel is as close to float64 as PyTorch is.

        On two heads of the longest and the shortest utterance: the oracle materialises everything in float64.
        """
        ends = slice(None, None, max(len(self.grad) - 1, 1))
        some = dict(self.ours)
        for name in ("q", "k", "v"):
            some[name] = some[name][ends, :, :2].detach().requires_grad_()
        for name in {"rel_pos", "content_bias", "position_bias"} & some.keys():
            some[name] = some[name][..., :2, :].detach().requires_grad_()
        if "lengths" in some:
            some["lengths"] = some["lengths"][ends]
        grad = self.grad[ends, :, :2]
        # A weight is exp(score - logarithm of the sum) in float32: known up to epsilon times the largest score.
        slack = 10.0 if grad.dtype == torch.float32 else 1.0
        check(block_attention, block_attention_reference, grad=grad, slack=slack, **some)


def make(setting: Setting, dtype: torch.dtype, backward: bool) -> Problem:
    """Forward, or forward with backward."""
    inputs = Inputs(setting, dtype)
    leaves = [value for value in inputs.ours.values() if getattr(value, "requires_grad", False)]
    peer_leaves = [*inputs.rows, *inputs.positions]

    def run(function: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(function(), leaves, grad)) if backward else function

    def peer(function: Callable[..., Tensor], *arguments: Tensor | None) -> Callable[[], object]:
        return run(partial(function, *arguments), peer_leaves, inputs.row_grad)

    candidates = {"ours": run(lambda: block_attention(**inputs.ours), leaves, inputs.grad)}
    pairs = float(inputs.visible.sum()) * setting.heads
    if setting.relative:
        hidden = ~inputs.mask
        candidates |= {"eager rel-pos": peer(inputs.eager, hidden), "SDPA float bias": peer(inputs.float_bias, hidden)}
        products = 11 if backward else 3
    else:
        full = bool(inputs.visible.all())
        candidates["SDPA" if full else "SDPA bool mask"] = peer(inputs.sdpa, None if full else inputs.mask)
        products = 7 if backward else 2
    return Problem(
        candidates,
        gate=inputs.check,
        flops=2 * products * 64 * pairs,
        bytes=(11 if backward else 4) * inputs.ours["q"].nbytes,
    )


FULL = {"SDPA": 0.85}
HALF = {"SDPA bool mask": 0.45}
SETTINGS: list[tuple[Setting, dict[str, float], bool]] = [
    (Setting(16, 250), FULL, True),
    (Setting(8, 750), FULL, False),
    (Setting(16, 250, padded=True), HALF, True),
    (Setting(8, 750, padded=True), HALF, False),
    (Setting(8, 750, blocks=0.5), HALF, False),
    (Setting(8, 750, padded=True, window=(64, 64)), {"SDPA bool mask": 0.15}, True),
    (Setting(16, 250, padded=True, relative=True), {"eager rel-pos": 0.25}, True),
    (Setting(8, 750, padded=True, relative=True), {"eager rel-pos": 0.13}, False),
    (Setting(16, 250, padded=True, relative=True, p=0.1), {}, False),
    (Setting(1, 3000, 4), {}, False),
    (Setting(1, 3000, 4, window=(64, 64)), {}, False),
]

for (setting, targets, quick), dtype, backward in itertools.product(
    SETTINGS, (torch.float32, torch.bfloat16), (False, True)
):
    if dtype == torch.bfloat16 and not (backward and targets):
        continue
    register(
        Case(
            "block_attention",
            f"{setting} {'fwd+bwd' if backward else 'fwd'}",
            partial(make, setting, dtype, backward),
            dtype=dtype,
            targets=targets if backward else {},
            quick=quick and backward and dtype == torch.float32,
            rounds=3 if setting.relative and setting.frames > 250 else 5,
        )
    )
