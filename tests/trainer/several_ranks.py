"""Run by test_distributed.py under torchrun: one tiny training on all ranks.

    torchrun ... several_ranks.py RUN_DIR [WHAT ...]

WHAT: die (rank 1 kills itself in the middle of the first event), disagree (the ranks' scores differ), empty (every
event leaves the second block without its feed-forward modules), or nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import dmao.controller
import torch
import torch.distributed as dist
from dmao.controller import GrowAndDrop
from dmao.trainer import train

from dmao_kernels.structure import Plan, given_plan
from tests.trainer.tiny import TinySource, tiny_config

SETTINGS = ["model.dropout=0.0", "model.output_dropout=0.0", "eval_splits=[]"]


def die_in_the_event() -> None:
    apply = dmao.controller.apply_plan

    def apply_or_die(*args: Any, **options: Any) -> Any:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return apply(*args, **options)

    dmao.controller.apply_plan = apply_or_die


def disagree() -> None:
    dmao.controller.averaged = lambda scores: {  # type: ignore[assignment]
        name: values + torch.rand(len(values), generator=torch.Generator().manual_seed(dist.get_rank()))
        for name, values in scores.values().items()
    }


def plan_without_ffn(self: GrowAndDrop, scores: Any) -> Plan:
    counts = self.elastic.counts()
    return given_plan({name: () for name in counts if "blocks.1.ffn" in name and counts[name]}, counts)


def empty() -> None:
    GrowAndDrop._plan = plan_without_ffn  # type: ignore[method-assign]


def main() -> None:
    run_dir, *words = sys.argv[1:]
    for word in words:
        {"die": die_in_the_event, "disagree": disagree, "empty": empty}[word]()
    train(tiny_config(*SETTINGS), run_dir, TinySource())


if __name__ == "__main__":
    main()
