"""adamw_importance_, as ScoringAdamW calls it, against PyTorch's AdamW: `make bench ARGS="-k adamw_importance"`.

The parameters are those of a Conformer of 12 blocks and width 384, 42 million, and the scores those of its elastic
modules. "torch fused" and "torch foreach" score nothing; the two passes are what is fused here. Floor: parameter,
gradient and both moments are read once, all but the gradient written once, 28 bytes per parameter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from dmao.models import ConformerConfig, ConformerCTC
from torch import Tensor

from benchmarks.registry import Case, Problem, register
from dmao_kernels.structure import Elastic, Scores, ScoringAdamW
from dmao_kernels.testing import assert_close_to_oracle

MOMENTS = ("exp_avg", "exp_avg_sq")


class Training:
    """A model with random gradients, and optimizers that share its parameters and their state."""

    def __init__(self, width: int, blocks: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = ConformerCTC(ConformerConfig(outputs=500, width=width, blocks=blocks))
        self.params = list(self.model.parameters())
        for param in self.params:
            param.grad = 0.01 * torch.randn(param.shape, generator=generator)
        self.scores = Scores(Elastic(self.model))
        self.ours = ScoringAdamW(self.params, lr=1e-4, scores=self.scores)
        self.ours.step()
        self.fused, self.foreach = self.torchs(fused=True), self.torchs(foreach=True)
        self.separate = Scores(self.scores.elastic)

    def torchs(self, **options: bool) -> torch.optim.AdamW:
        """PyTorch's AdamW of the same parameters and state."""
        optimizer = torch.optim.AdamW(self.params, lr=1e-4, **options)
        optimizer.state.update(self.ours.state)
        return optimizer

    def two_passes(self) -> None:
        self.separate.update()
        self.fused.step()

    def loop(self) -> None:
        """Scores by a loop over the components, as they are written without this library."""
        with torch.no_grad():
            for module in self.scores.elastic.modules.values():
                name = module.layout.scored
                weight = module.place(name).tensor
                w, g = (module.view(name, t).unbind(1) for t in (weight, weight.grad))
                torch.stack([(a * b).abs().mean() for a, b in zip(w, g, strict=True)])
        self.fused.step()

    def check(self) -> None:
        """Raises AssertionError unless update and scores are as close to float64 as PyTorch's are."""
        self.separate.ema.copy_(self.scores.ema)
        before, gradient = self.snapshot(), [p.grad for p in self.params]
        torchs = self.step_of(before, gradient, torch.float32)
        truth = self.step_of(before, gradient, torch.float64)
        self.separate.update()
        self.ours.step()
        assert torch.equal(self.scores.ema, self.separate.ema)
        for name, found in zip(("param", *MOMENTS), self.snapshot(), strict=True):
            for i, tensor in enumerate(found):
                assert_close_to_oracle(tensor, torchs[name][i], truth[name][i], name=f"{name}[{i}]")

    def snapshot(self) -> list[list[Tensor]]:
        """Copies of the parameters and of both moments."""
        states = [self.ours.state[p] for p in self.params]
        return [[p.detach().clone() for p in self.params], *([s[name].clone() for s in states] for name in MOMENTS)]

    def step_of(
        self, before: list[list[Tensor]], gradient: list[Tensor], dtype: torch.dtype
    ) -> dict[str, list[Tensor]]:
        """PyTorch's fused step from there, in this dtype."""
        params, *moments = ([t.to(dtype, copy=True) for t in tensors] for tensors in before)
        optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
        for i, param in enumerate(params):
            param.grad = gradient[i].to(dtype)
            step = self.ours.state[self.params[i]]["step"].clone()
            optimizer.state[param] = {"step": step, "exp_avg": moments[0][i], "exp_avg_sq": moments[1][i]}
        optimizer.step()
        return {"param": params, "exp_avg": moments[0], "exp_avg_sq": moments[1]}


def make() -> Problem:
    training = Training(width=384, blocks=12)
    candidates: dict[str, Callable[[], object]] = {
        "ours": training.ours.step,
        "torch fused": training.fused.step,
        "torch foreach": training.foreach.step,
        "torch fused + importance_": training.two_passes,
        "torch fused + loop": training.loop,
    }
    return Problem(candidates, training.check, bytes=28 * sum(p.numel() for p in training.params))


register(
    Case(
        "adamw_importance_",
        "d=384, 12 blocks",
        make,
        targets={"torch fused": 1.03, "torch fused + importance_": 0.9, "torch fused + loop": 0.8},
        quick=True,
        rounds=15,
    )
)
