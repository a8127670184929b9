"""Run by test_soak.py in a process of its own: a long training, with memory, files and threads told as it goes.

python soak.py RUN_DIR STEPS
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dmao.trainer import train

from tests.trainer.tiny import TinySource, tiny_config

STEPS_PER_EVENT, STEPS_PER_CHECKPOINT, STEPS_PER_EVALUATION = 40, 20, 50
EVERY = 10  # batches between two samples
PAGE = os.sysconf("SC_PAGE_SIZE")


class Watched(TinySource):
    """Notes [resident bytes, open files, threads] while the training asks it for batches."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[list[int]] = []
        self._served = 0

    def _batch(self, split, indices):
        self._served += split == "train"
        if self._served % EVERY == 0 and split == "train":
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
            self.samples.append([resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))])
        return super()._batch(split, indices)


def main() -> None:
    run_dir, steps = Path(sys.argv[1]), int(sys.argv[2])
    events = steps // STEPS_PER_EVENT - 1
    last = events * STEPS_PER_EVENT
    config = tiny_config(
        f"steps={steps}",
        f"grow_and_drop.schedule={{end: {last}, events: {events}, fraction: 0.2}}",
        f"checkpoint_every={STEPS_PER_CHECKPOINT}",
        f"eval_every={STEPS_PER_EVALUATION}",
        "eval_splits=[test]",
        "learning_rate.peak=2e-3",
        "tensorboard=true",
    )
    source = Watched()
    result = train(config, run_dir, source)
    print(json.dumps({"samples": source.samples, "steps": result.steps, "events": len(result.events)}))


if __name__ == "__main__":
    main()
