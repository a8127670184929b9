"""What grow-and-drop adds to the time of training, scores every step plus events: `make bench ARGS="-k overhead"`.

Steps with and without scores alternate on the same random batches; the events are those of the schedule, shared out
over all its steps. "without" is the step without any of it. The measurement is that of `dmao bench` (dmao.overhead):
what scoring adds is taken from the optimizer's part of the step, the rest being the same code in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from dmao.config import TrainConfig, load_config
from dmao.data.labels import Labels
from dmao.data.loader import Batch, LeftOut
from dmao.overhead import measure_overhead
from dmao.randomness import generator
from dmao.recipes.embedded.demo import demo_config
from dmao.scoring import Segment
from dmao.step import TrainingStep, build_model, make_controller, make_optimizer

from benchmarks._harness import Timing
from benchmarks.registry import Case, Problem, register

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LARGE = [
    "model={width: 384, blocks: 12, heads: 6, head_dim: 64}",
    "grow_and_drop.schedule={start: 0.3, end: 0.6, events: 4, fraction: 0.15}",
]


@dataclass
class RandomSource:
    """Batches of noise with random labels, of the lengths that are given."""

    frames: tuple[int, ...]
    labels_each: int = 12
    inputs: int = 80
    words: tuple[str, ...] = (LETTERS,)

    @property
    def labels(self) -> Labels:
        return Labels.characters(self.words)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        random = generator(0, "benchmark", epoch)
        frames, count = torch.tensor(self.frames), len(self.frames)
        features = torch.randn(count, max(self.frames), self.inputs, generator=random)
        features[torch.arange(max(self.frames)) >= frames[:, None]] = 0.0
        text = [
            "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (self.labels_each,), generator=random))
            for _ in range(count)
        ]
        targets = torch.tensor([label for words in text for label in self.labels.encode(words)])
        names = tuple(f"random-{i}" for i in range(count))
        yield Batch(features, frames, targets, torch.full((count,), self.labels_each), names, tuple(text))

    def eval_batches(self, split: str) -> Iterator[Batch]:
        return self.train_batches(0)

    def left_out(self, split: str) -> list[LeftOut]:
        return []

    def segments(self, split: str) -> dict[str, Segment]:
        return {}


def trained(config: TrainConfig, source: RandomSource, scores: bool) -> tuple[list[torch.Tensor], int]:
    """The parameters after two steps, and the updates of the scores that these made."""
    model = build_model(config, len(source.labels), source.inputs)
    optimizer = make_optimizer(model, config.optimizer)
    controller = make_controller(model, optimizer, config)
    assert controller is not None
    optimizer.scores = controller.scores if scores else None
    step = TrainingStep(model, optimizer, config, controller)
    for number in (1, 2):
        step(next(source.train_batches(number)), number)
    return [parameter.detach() for parameter in model.parameters()], controller.scores.updates


def check(config: TrainConfig, source: RandomSource) -> None:
    """Raises AssertionError unless scoring leaves the training as it is, to the bit."""
    (ours, updates), (plain, none) = (trained(config, source, scores) for scores in (True, False))
    assert (updates, none) == (2, 0)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def measure(config: TrainConfig, source: RandomSource, step_seconds: float, seconds: float) -> dict[str, Timing]:
    pairs = max(10, int(seconds / (2 * step_seconds)))
    found = measure_overhead(config, source, pairs=pairs, events=3)
    step = found.step_ms.median / 1e3
    half = (found.total_pct.high - found.total_pct.low) / 200
    return {
        "ours": Timing(step * (1 + found.total_pct.median / 100), half),
        "without": Timing(step, (found.step_ms.high - found.step_ms.low) / 2 / found.step_ms.median),
    }


def make(overrides: list[str], frames: tuple[int, ...], step_seconds: float) -> Problem:
    config = load_config(demo_config(), [*overrides, f"threads={torch.get_num_threads()}"])
    source = RandomSource(frames)
    nothing = dict.fromkeys(("ours", "without"), lambda: None)
    return Problem(
        nothing,
        partial(check, config, source),
        measure=partial(measure, config, source, step_seconds),
    )


CASES = {
    "demo's model, 8 x 250 frames": ([], (250, 250, 240, 230, 220, 210, 200, 180), 0.15),
    "d=384, 12 blocks, 4 x 400 frames": (LARGE, (400, 380, 350, 300), 1.5),
}
for name, problem in CASES.items():
    register(Case("overhead", name, partial(make, *problem), targets={"without": 1.005}, quick=problem[0] == []))
