"""One training step of a recipe on a GPU, beside the same model in plain PyTorch, and the memory that it takes.

`python -m benchmarks.step_on_gpu librispeech/conformer_512 [--precision bf16] [--set key=value]`

In turns, on the same random batches with the recipe's seconds of audio, no two of the same lengths: this library's step
(ConformerCTC, AdamW that scores) and that of `dmao_kernels.compact(model)` with PyTorch's fused AdamW. "host" is until
the step has been queued, "wall" until the GPU has finished it, "GPU" what its kernels take alone: where the host
takes longer, it is the host that the training waits for.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from dmao.config import TrainConfig, load_config
from dmao.data.loader import Batch
from dmao.distributed import device_of
from dmao.memory import expected_memory
from dmao.models import ConformerCTC, ctc_loss
from dmao.recipes import configs
from dmao.step import TrainingStep, autocast, build_model, make_controller, make_optimizer
from torch import Tensor, nn

from benchmarks._gradients import assert_as_good, gradients
from dmao_kernels import compact

WARM, ROUNDS = 3, 15
Step = Callable[[Batch], object]
OUTPUTS, UTTERANCE, LABELS_PER_SECOND = 79, 15, 10  # labels, seconds of an utterance at most, speech


@dataclass(frozen=True)
class Times:
    """Milliseconds: medians of the rounds; gpu is None without a GPU."""

    wall: float
    host: float
    gpu: float | None
    kernels: int | None


def random_batch(seconds: float, seed: int = 0) -> Batch:
    """As many utterances as fit, of 7.5 to 15 s."""
    generator = torch.Generator().manual_seed(seed)
    most = max(1, int(2 * seconds // UTTERANCE))
    lengths = torch.randint(50 * UTTERANCE, 100 * UTTERANCE + 1, (most,), generator=generator)
    count = max(1, int((lengths.cumsum(0) <= 100 * seconds).sum()))
    lengths = lengths[:count]
    labels = lengths * LABELS_PER_SECOND // 100
    return Batch(
        torch.randn(count, int(lengths.max()), 80, generator=generator),
        lengths,
        torch.randint(1, OUTPUTS, (int(labels.sum()),), generator=generator),
        labels,
        tuple(f"random-{i}" for i in range(count)),
        ("",) * count,
    )


def loss_of(model: nn.Module, batch: Batch, precision: str) -> Tensor:
    device = next(model.parameters()).device
    features = batch.features.to(device)
    with autocast(precision, device):
        log_probs, lengths = model(features, batch.feature_lengths)
    return ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths).loss


def our_step(model: ConformerCTC, config: TrainConfig) -> Step:
    optimizer = make_optimizer(model, config.optimizer)
    step = TrainingStep(model, optimizer, config, make_controller(model, optimizer, config))
    return lambda batch: step(batch, 1)


def plain_step(model: nn.Module, config: TrainConfig) -> Step:
    """Also the loss and the gradients' norm are fetched, as a trainer that looks at them does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, batch, config.precision)
        loss.item()
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
        optimizer.step()

    return step


def check(model: ConformerCTC, plain: nn.Module, batch: Batch, precision: str) -> None:
    """Raises AssertionError unless both have the same loss and gradients, without dropout.

    In bf16 both are compared with the plain model in fp32, and ours may be three times as far from that: much of what
    attention's queries and keys get in an untrained model is rounding, in both.
    """

    def found(module: nn.Module, precision: str) -> dict[str, Tensor]:
        return gradients(module, lambda: loss_of(module, batch, precision))

    coarse = found(plain, precision) if precision == "bf16" else None
    exact = found(plain, "fp32")  # on GPUs some of it may be TF32
    assert_as_good(found(model, precision), exact, 4e-2, coarse, factor=3.0)


def measure(calls: dict[str, Step], seconds: float, device: torch.device) -> dict[str, Times]:
    """In turns, with a batch of its own in every round."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    walls: dict[str, list[float]] = {name: [] for name in calls}
    hosts: dict[str, list[float]] = {name: [] for name in calls}
    for seed in range(WARM + ROUNDS):
        batch = random_batch(seconds, seed)
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call(batch)
            hosts[name].append(time.perf_counter() - start)
            wait()
            walls[name].append(time.perf_counter() - start)
    return {
        name: Times(
            1e3 * statistics.median(walls[name][WARM:]),
            1e3 * statistics.median(hosts[name][WARM:]),
            *_on_gpu(call, batch, device),
        )
        for name, call in calls.items()
    }


def _on_gpu(call: Step, batch: Batch, device: torch.device) -> tuple[float | None, int | None]:
    """Milliseconds of all kernels of a step, and how many they are."""
    if device.type != "cuda":
        return None, None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(batch)
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(event.device_time for event in events) / 1e3, len(events)


def peak_memory(step: Step, batch: Batch, device: torch.device) -> float | None:
    """Gigabytes that PyTorch had in use at most; to be called before anything else is on the GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step(batch)
    return torch.cuda.max_memory_allocated() / 1e9


def run(config: TrainConfig) -> None:
    device, batch = device_of(config.device), random_batch(config.data.batch_seconds)
    model = build_model(config, OUTPUTS).to(device)
    ours = our_step(model, config)
    peak = peak_memory(ours, batch, device)
    plain = compact(model).to(device).train()
    check(model, plain, batch, config.precision)
    found = measure({"ours": ours, "plain PyTorch": plain_step(plain, config)}, config.data.batch_seconds, device)
    for name, times in found.items():
        gpu = "" if times.gpu is None else f", GPU {times.gpu:.1f} ms in {times.kernels} kernels"
        print(f"{name}: wall {times.wall:.1f} ms, host {times.host:.1f} ms{gpu}")
    first, second = found.values()
    gpu = "" if first.gpu is None or not second.gpu else f", GPU {first.gpu / second.gpu:.2f}"
    print(f"ours / plain: wall {first.wall / second.wall:.2f}, host {first.host / second.host:.2f}{gpu}")
    expected = expected_memory(config.model.conformer(OUTPUTS), config.precision).total(config.data.batch_seconds) / 1e9
    print(f"memory: computed {expected:.2f} GB" + ("" if peak is None else f", peak {peak:.2f} GB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=configs(), metavar="RECIPE", help=", ".join(configs()))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    fixed = [f"precision={given.precision}", "epochs=null", "steps=1000", "grow_and_drop.observe_every=1"]
    run(load_config(configs()[given.recipe], [*fixed, *given.overrides]))


if __name__ == "__main__":
    main()
