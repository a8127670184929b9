"""What an event costs beyond one process: averaging scores and comparing plans, beside the exchange of gradients that
every step makes anyway. `python -m benchmarks.score_exchange [--ranks 2 4]`, gloo on this machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dmao.distributed import averaged, require_same

COMPONENTS, PARAMETERS = 13_896, 27_000_000  # the finest granularity of docs/METHOD.md, and the model it belongs to
WARM, ROUNDS = 3, 15


def measure(rank: int, ranks: int, rendezvous: str) -> None:
    """One rank's part; the first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    scores, gradients = {"all": torch.rand(COMPONENTS)}, torch.rand(PARAMETERS)

    def exchange() -> None:
        averaged(scores)
        require_same("the plan", "0" * 64)

    calls: tuple[Callable[[], object], ...] = (exchange, lambda: dist.all_reduce(gradients))
    samples: list[list[float]] = [[], []]
    for _ in range(WARM + ROUNDS):
        for call, times in zip(calls, samples, strict=True):
            dist.barrier()
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    ours, peer = (statistics.median(times[WARM:]) for times in samples)
    if rank == 0:
        print(
            f"{ranks} ranks: scores and plan of an event {1e3 * ours:.2f} ms, gradients of a step {1e3 * peer:.1f} ms; "
            f"ratio {ours / peer:.4f} (medians of {ROUNDS} rounds, in turns)"
        )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    for ranks in parser.parse_args().ranks:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (ranks, str(Path(folder) / "rendezvous")), nprocs=ranks)


if __name__ == "__main__":
    main()
