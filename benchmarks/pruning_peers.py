"""Grow-and-drop beside pruning libraries: one model, one budget, one event in mid-training: docs/PEERS.md.

python -m benchmarks.pruning_peers [--threads 2] [--seconds 6] [--out docs/PEERS.md]

Six residual feed-forward blocks of width 256 and 1024 hidden units, AdamW, towards a random teacher. After 30 steps the
hidden layers are cut to half, by each method as its own documentation does it. Then the same optimizer object goes on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks._harness import interleaved
from dmao_kernels.info import processor
from dmao_kernels.structure import Elastic, Scores, apply_plan, feedforward_layout, make_plan, register_family

WIDTH, HIDDEN, BLOCKS, ROWS = 256, 1024, 6, 1024
COMPONENTS = 64
BEFORE, AFTER = 30, 30
SHARE = 0.5
TARGET = Path(__file__).resolve().parents[1] / "docs" / "PEERS.md"

PEERS = ("this library", "Torch-Pruning", "torch.nn.utils.prune", "RigL")
SUPPORTS = {
    "unit": (
        "components of known modules, any granularity",
        "channels, in groups found by tracing",
        "entries, rows, columns",
        "entries",
    ),
    "scores": (
        "running, from the ordinary gradients",
        "when asked, from the last gradients",
        "when asked, from weights",
        "when asked, from weights and dense gradients",
    ),
    "grows": ("yes, the function is kept", "no", "no", "yes, from zero"),
    "parameters": ("same objects, smaller", "new objects, smaller", "same objects, masked", "same objects, masked"),
    "optimizer state": ("follows", "the user makes a new optimizer", "stays", "stays, zero for grown entries"),
    "budget": (
        "parameters, to one component",
        "a share of the channels",
        "a share of the entries",
        "a share of the entries",
    ),
    "checkpoint": ("widths saved and replayed", "pickled model", "masks in the state dict", "masks in the state dict"),
    "unknown architectures": ("layout declared, or a known class", "traced, most of them", "any", "any"),
}


LEGEND = (
    "*Scoring* is one evaluation of all scores; this library takes it at every step, the others once before the edit. "
    "*Right moments*: the share of the kept rows of the first matrices whose first moment is what it was before the "
    "edit. *All parameters train*: whether one step of the optimizer changes every parameter that has a gradient. "
    "Masks leave the number of parameters, and the arithmetic, as they were; the masked products come on top. A new "
    "AdamW takes large steps at first: compare losses of rows with the same treatment of the optimizer. One run each."
)


class Block(nn.Module):
    """LayerNorm, Linear, SiLU, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(self.norm(x))))


register_family(Block, feedforward_layout(up="up", down="down"))


class Model(nn.Module):
    """Residual blocks and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.output = nn.ModuleList(Block() for _ in range(BLOCKS)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.output(x)


@dataclass
class Training:
    """A model, its optimizer and a fixed sequence of batches."""

    model: Model
    optimizer: torch.optim.Optimizer
    teacher: nn.Module
    step_number: int = 0
    after_backward: list[Callable[[], object]] = field(default_factory=list)

    def step(self) -> float:
        generator = torch.Generator().manual_seed(self.step_number)
        x = torch.randn(ROWS, WIDTH, generator=generator)
        with torch.no_grad():
            target = self.teacher(x)
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(x), target)
        loss.backward()
        for call in self.after_backward:
            call()
        self.optimizer.step()
        self.step_number += 1
        return loss.item()


def new_training() -> Training:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(WIDTH, 512), nn.Tanh(), nn.Linear(512, WIDTH))
    model = Model()
    return Training(model, torch.optim.AdamW(model.parameters(), lr=1e-3), teacher)


class Ours:
    """Scores at every step, a plan for half the size, an edit."""

    name = "this library"

    def __init__(self, training: Training) -> None:
        self.training = training
        self.elastic = Elastic(training.model, COMPONENTS)
        self.scores = Scores(self.elastic)
        training.after_backward.append(self.scores.update)

    def score(self) -> None:
        self.scores.update()

    def edit(self) -> None:
        fixed = self.elastic.fixed_parameters()
        budget = fixed + round(SHARE * (self.elastic.live_parameters() - fixed))
        groups = self.elastic.groups(self.scores.values())
        plan = make_plan(groups, fraction=SHARE, budget=budget, fixed=fixed)
        apply_plan(plan, self.elastic, self.training.optimizer)
        self.scores.follow(plan)


class OursAnew(Ours):
    """The same with a new optimizer, so that what moments do can be told from what the pruning does."""

    name = "this library, new optimizer"

    def edit(self) -> None:
        super().edit()
        self.training.optimizer = torch.optim.AdamW(self.training.model.parameters(), lr=1e-3)


class TorchPruning:
    """Its MetaPruner on the hidden layers with group Taylor importance; the optimizer is left as it was."""

    name = "Torch-Pruning, optimizer left"

    def __init__(self, training: Training) -> None:
        self.training = training
        fixed = [training.model.output, *(block.down for block in training.model.blocks)]
        self.importance = torch_pruning.importance.GroupTaylorImportance()
        self.pruner = torch_pruning.pruner.BasePruner(
            training.model,
            torch.randn(2, WIDTH),
            self.importance,
            global_pruning=True,
            pruning_ratio=SHARE,
            round_to=HIDDEN // COMPONENTS,
            ignored_layers=fixed,
        )

    def score(self) -> None:
        graph, cut = self.pruner.DG, torch_pruning.prune_linear_out_channels
        for block in self.training.model.blocks:
            self.importance(graph.get_pruning_group(block.up, cut, list(range(block.up.out_features))))

    def edit(self) -> None:
        self.pruner.step()


class TorchPruningAnew(TorchPruning):
    """The same with a new optimizer, as its examples make one."""

    name = "Torch-Pruning, new optimizer"

    def edit(self) -> None:
        super().edit()
        self.training.optimizer = torch.optim.AdamW(self.training.model.parameters(), lr=1e-3)


class TorchPrune:
    """torch.nn.utils.prune: masks over whole rows, by their L1 norm."""

    name = "torch.nn.utils.prune"

    def __init__(self, training: Training) -> None:
        self.training = training

    def score(self) -> None:
        for block in self.training.model.blocks:
            block.up.weight.detach().abs().sum(1)

    def edit(self) -> None:
        for block in self.training.model.blocks:
            prune.ln_structured(block.up, "weight", amount=SHARE, n=1, dim=0)
            dead = ~block.up.weight_mask[:, 0].bool()
            prune.custom_from_mask(block.up, "bias", (~dead).to(block.up.bias.dtype))
            prune.custom_from_mask(block.down, "weight", (~dead).expand_as(block.down.weight).to(torch.float32))


class RigL:
    """Evci et al., 2020, after training dense: masks by magnitude, then 30 % of the live entries move once.

    The lowest magnitudes go, the highest gradients among the dead entries come, from zero and with zero moments.
    """

    name = "RigL-type masks"

    def __init__(self, training: Training) -> None:
        self.training = training
        self.weights = [w for block in training.model.blocks for w in (block.up.weight, block.down.weight)]
        self.masks: list[Tensor] = []

    def score(self) -> None:
        for weight in self.weights:
            weight.detach().abs(), weight.grad.abs()  # type: ignore[union-attr]

    @torch.no_grad()
    def edit(self) -> None:
        for weight in self.weights:
            assert weight.grad is not None
            live = round(SHARE * weight.numel())
            magnitude = weight.abs().flatten()
            mask = torch.zeros_like(magnitude, dtype=torch.bool)
            mask[magnitude.topk(live).indices] = True
            moving = round(0.3 * live)
            leaving = magnitude.masked_fill(~mask, torch.inf).topk(moving, largest=False).indices
            coming = weight.grad.abs().flatten().masked_fill(mask, -1.0).topk(moving).indices
            mask[leaving] = False
            mask[coming] = True
            weight.mul_(mask.view_as(weight)).view(-1)[coming] = 0.0
            for key in ("exp_avg", "exp_avg_sq"):
                self.training.optimizer.state[weight][key].view(-1)[coming] = 0.0
            self.masks.append(mask.view_as(weight))
        self.training.after_backward.append(self.apply)
        self.training.optimizer.register_step_post_hook(lambda *_: self.apply())

    @torch.no_grad()
    def apply(self) -> None:
        """Dead entries get neither gradients nor weight."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)
            if weight.grad is not None:
                weight.grad.mul_(mask)


METHODS = (Ours, OursAnew, TorchPruning, TorchPruningAnew, TorchPrune, RigL)


@dataclass
class Result:
    """Times in seconds; `moments`: share of the kept rows whose first moment is what it was."""

    name: str
    score: float
    edit: float
    parameters: int
    moments: float
    trains: bool
    losses: tuple[float, float, float]
    training: Training


def first_moments(training: Training) -> list[tuple[Tensor, Tensor | None]]:
    """Of every block: the weights of the first Linear, and what the optimizer keeps for them."""
    found = []
    for block in training.model.blocks:
        weight = block.up._parameters.get("weight_orig", block.up._parameters.get("weight"))
        state = training.optimizer.state.get(weight, {})
        moment = state["exp_avg"].clone() if "exp_avg" in state else None
        found.append((weight.detach().clone(), moment))
    return found


def kept_moments(before: list[tuple[Tensor, Tensor | None]], after: list[tuple[Tensor, Tensor | None]]) -> float:
    """Rows of weights are recognised by their values; entries that were set to zero are left out."""
    right = rows = 0
    for (old, old_moment), (new, new_moment) in zip(before, after, strict=True):
        assert old_moment is not None
        for row in range(len(new)):
            live = new[row] != 0
            match = ((old[:, live] == new[row, live]).all(1)).nonzero().flatten().tolist()
            if not match or not live.any():
                continue
            rows += 1
            if new_moment is not None and new_moment.shape == new.shape:
                right += torch.equal(new_moment[row, live], old_moment[match[0], live])
    return right / max(rows, 1)


def measure(kind: type) -> Result:
    training = new_training()
    method = kind(training)
    for _ in range(BEFORE):
        loss_before = training.step()
    before = first_moments(training)
    score = min(_seconds(method.score) for _ in range(5))
    edit = _seconds(method.edit)
    after = first_moments(training)
    weights = [p.detach().clone() for p in training.model.parameters()]
    loss_after = training.step()
    pairs = zip(training.model.parameters(), weights, strict=True)
    changed = [not torch.equal(p, w) for p, w in pairs if p.grad is not None]
    for _ in range(AFTER):
        loss_end = training.step()
    parameters = sum(p.numel() for p in training.model.parameters())
    losses = (loss_before, loss_after, loss_end)
    return Result(kind.name, score, edit, parameters, kept_moments(before, after), all(changed), losses, training)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def page(results: list[Result], times: dict[str, float], threads: int) -> str:
    """docs/PEERS.md."""
    dense = times["dense"]
    rows = [
        f"| {r.name} | {1e3 * r.score:.2f} | {1e3 * r.edit:.1f} | {r.parameters:,} | {100 * r.moments:.0f} % | "
        f"{'yes' if r.trains else 'no'} | {' / '.join(f'{loss:.4f}' for loss in r.losses)} | "
        f"{1e3 * times[r.name]:.1f} ({dense / times[r.name]:.2f} x) |"
        for r in results
    ]
    return "\n".join(
        [
            "# Beside pruning libraries",
            "",
            "Written by `python -m benchmarks.pruning_peers`: " + " ".join((__doc__ or "").split("\n\n")[2].split()),
            "",
            "| method | scoring, ms | edit, ms | parameters | right moments | all parameters train | "
            "loss before / after / 30 steps on | step, ms (gain) |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"A dense step takes {1e3 * dense:.1f} ms; {threads} threads of {processor()}, "
            f"{date.today().isoformat()}, PyTorch "
            f"{torch.__version__}, Torch-Pruning {metadata.version('torch-pruning')}. " + LEGEND,
            "",
            "What each supports:",
            "",
            f"|  | {' | '.join(PEERS)} |",
            "|---" * (len(PEERS) + 1) + "|",
            *(f"| {what} | {' | '.join(each)} |" for what, each in SUPPORTS.items()),
            "",
        ]
    )


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing the steps")
    parser.add_argument("--out", type=Path, default=TARGET, help="the page")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    results = [measure(kind) for kind in METHODS]
    candidates = {"dense": new_training(), **{result.name: result.training for result in results}}
    timings = interleaved({n: partial(Training.step, t) for n, t in candidates.items()}, arguments.seconds)
    times = {name: timing.median for name, timing in timings.items()}
    text = page(results, times, arguments.threads)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
