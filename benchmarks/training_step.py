"""One whole training step of the Conformer-CTC against eager PyTorch: `make bench ARGS="-k training_step"`.

12 blocks of width 384, dropout 0.1, batches of 16 utterances of 5 to 10 s (a quarter of the frames is padding),
forward, CTC loss, backward, AdamW. The peers (benchmarks/_eager_conformer.py) start from the same weights: one with
relative positions as ours, and, for the published form without positions, one with F.scaled_dot_product_attention.
Fewer utterances serve where 16 would take minutes: two in bfloat16, which PyTorch computes slowly where the CPU has no
instructions for it, and four with two blocks, which are compared with torch.compile too. With half of the FFN the peer
is ours with all of it, and the gate `dmao_kernels.compact`: the same widths in plain PyTorch.

Floor: the products of the front end (as Winograd has them), of all linear layers and of attention, for the frames that
are no padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from dmao.models import ConformerConfig, ConformerCTC, ctc_loss
from torch import Tensor, nn

from benchmarks._eager_conformer import EagerConformerCTC
from benchmarks._gradients import assert_as_good, gradients
from benchmarks.registry import Case, Problem, register
from dmao_kernels import compact
from dmao_kernels.structure import Elastic, apply_plan, given_plan

UTTERANCES, FEW, LEAST, LONGEST = 16, 4, 2, 1000
EAGER = {"relative": "eager, relative positions", "none": "eager, SDPA"}
COMPILED = "torch.compile"


class Batch:
    """Random features and labels, about four frames of output to a label."""

    def __init__(self, utterances: int, padded: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lengths = torch.full((utterances,), LONGEST)
        if padded:
            self.lengths[1:] = torch.randint(LONGEST // 2, LONGEST + 1, (utterances - 1,), generator=generator)
        self.features = torch.randn(utterances, LONGEST, 80, generator=generator)
        self.target_lengths = self.lengths // 16
        self.targets = torch.randint(1, 79, (int(self.target_lengths.sum()),), generator=generator)

    @property
    def frames(self) -> int:
        """Of output, without padding."""
        return int((self.lengths // 4).sum())


class Step:
    """Forward, loss, backward, AdamW on one batch, over and over."""

    def __init__(self, model: nn.Module, batch: Batch, dtype: torch.dtype, compiled: bool = False) -> None:
        self.model, self.batch = model.train(), batch
        self.forward = torch.compile(model) if compiled else model
        self.low = dtype == torch.bfloat16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss(self, low: bool | None = None) -> Tensor:
        """low: another precision than the step's own."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low if low is None else low):
            log_probs, lengths = self.forward(self.batch.features, self.batch.lengths)
        return ctc_loss(log_probs, lengths, self.batch.targets, self.batch.target_lengths).loss

    def gradients(self, low: bool | None = None) -> dict[str, Tensor]:
        """Of every parameter, and the loss itself, without dropout."""
        return gradients(self.model, partial(self.loss, low))

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()


def check(ours: Step, peer: Step) -> None:
    """Raises AssertionError unless loss and gradients agree with the peer's where there is no dropout.

    In bfloat16 both are compared with the peer in float32, and ours may be twice as far from that.
    """
    coarse = peer.gradients() if ours.low else None
    assert_as_good(ours.gradients(), peer.gradients(low=False), 4e-2 if ours.low else 4e-3, coarse)


def half_of_the_ffn(model: ConformerCTC) -> ConformerCTC:
    elastic = Elastic(model)
    sources = {name: (0, 1) for name in elastic.counts() if "ffn" in name}
    apply_plan(given_plan(sources, elastic.counts()), elastic)
    return model


def flops(model: ConformerCTC, batch: Batch) -> float:
    """Multiply-adds count twice; the backward pass is twice the forward one."""
    config, lengths = model.config, batch.lengths // 4
    linear = (m for m in model.blocks.modules() if isinstance(m, nn.Linear) and m.bias is not None)  # not of positions
    blocks = sum(m.weight.numel() for m in linear)
    weights = blocks + model.front.linear.weight.numel() + model.output.weight.numel()
    pairs = float((lengths.double() ** 2).sum())
    products = 3 if config.positions == "relative" else 2
    attention = sum(block.attention.heads for block in model.blocks) * config.head_dim * products * pairs
    images = [model.front.conv1, model.front.conv2, model.front.conv3, model.front.conv4]
    rows = 4 * batch.frames, 4 * batch.frames, 2 * batch.frames, 2 * batch.frames
    winograd = 4 / 9  # of the products of a direct convolution
    front = sum(winograd * conv.weight.numel() * config.inputs * n for conv, n in zip(images, rows, strict=True))
    return 6.0 * (batch.frames * weights + attention + front)


def make(
    blocks: int, positions: str, utterances: int, dtype: torch.dtype, padded: bool, dropped: bool, compiled: bool
) -> Problem:
    config = ConformerConfig(outputs=79, width=384, blocks=blocks, positions=positions)
    batch = Batch(utterances, padded)
    model = ConformerCTC(config)
    ours = Step(model, batch, dtype)
    if dropped:
        whole, ours = ours, Step(half_of_the_ffn(_copy(model)), batch, dtype)
        gate = partial(check, ours, Step(compact(ours.model), batch, dtype))
        return Problem({"ours": ours, "ours, all live": whole}, gate, flops=flops(ours.model, batch))
    eager = EagerConformerCTC(config)
    eager.load_state_dict(model.state_dict(), strict=False)
    peer = Step(eager, batch, dtype)
    candidates: dict[str, Callable[[], object]] = {"ours": ours, EAGER[positions]: peer}
    if compiled:
        candidates[COMPILED] = Step(_copy(eager), batch, dtype, compiled=True)
    return Problem(candidates, partial(check, ours, peer), flops=flops(model, batch))


def _copy(model: nn.Module) -> nn.Module:
    made = type(model)(model.config)
    made.load_state_dict(model.state_dict())
    return made


def _name(blocks: int, positions: str, utterances: int, padded: bool, dropped: bool) -> str:
    parts = [f"{blocks} blocks", f"batch of {utterances}"]
    parts += ["relative positions" if positions == "relative" else "published form"]
    parts += ["" if padded else "no padding", "half of the FFN" if dropped else ""]
    return ", ".join(part for part in parts if part)


def _targets(positions: str, dtype: torch.dtype, padded: bool, dropped: bool) -> dict[str, float]:
    """Half of the FFN is 28 % of the flops; 85 % of that share is to be saved in time."""
    if dropped:
        return {"ours, all live": 1 - 0.85 * 0.28}
    if not padded:
        return {EAGER[positions]: 0.60}
    bound = 0.45 if dtype == torch.bfloat16 else {"relative": 0.40, "none": 0.50}[positions]
    return {EAGER[positions]: bound, COMPILED: bound}


def _register(
    blocks: int,
    positions: str,
    dtype: torch.dtype = torch.float32,
    padded: bool = True,
    dropped: bool = False,
    quick: bool = False,
) -> None:
    utterances = LEAST if dtype == torch.bfloat16 else FEW if blocks == 2 else UTTERANCES
    register(
        Case(
            "training_step",
            _name(blocks, positions, utterances, padded, dropped),
            partial(make, blocks, positions, utterances, dtype, padded, dropped, compiled=blocks == 2),
            dtype=dtype,
            targets=_targets(positions, dtype, padded, dropped) if blocks == 12 else {},
            quick=quick,
            rounds=3 if utterances == FEW else 2,
        )
    )


_register(2, "relative", quick=True)
_register(2, "none")
for positions, dtype in itertools.product(("relative", "none"), (torch.float32, torch.bfloat16)):
    _register(12, positions, dtype)
_register(12, "relative", padded=False)
_register(12, "relative", dropped=True)
