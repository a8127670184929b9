"""Called by test_distributed.py on all ranks: tiny trainings, one after the other.

    torchrun ... several_ranks.py FOLDER NAME[=WHAT] ...

NAME: of the run's folder in FOLDER.  WHAT: die (rank 1 kills itself in the middle of the first event), disagree (the
ranks' scores differ), empty (every event leaves the second block without its feed-forward modules), sharded and
sharded_die (see sharded_ranks.py); else an ordinary training.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dmao.controller
import torch
import torch.distributed as dist
from dmao.controller import GrowAndDrop
from dmao.trainer import train

from dmao_kernels.structure import Plan, apply_plan, given_plan
from tests.trainer.sharded_ranks import compare_sharded, die
from tests.trainer.tiny import TinySource, tiny_config

SETTINGS = ["model.dropout=0.0", "model.output_dropout=0.0", "eval_splits=[]"]


def apply_or_die(*args: Any, **options: Any) -> Any:
    if dist.get_rank() == 1:
        die()
    return apply_plan(*args, **options)


def different_scores(scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(dist.get_rank())
    return {name: values + torch.rand(len(values), generator=random) for name, values in scores.items()}


def plan_without_ffn(self: GrowAndDrop, scores: Any) -> Plan:
    counts = self.elastic.counts()
    return given_plan({name: () for name in counts if "blocks.1.ffn" in name and counts[name]}, counts)


PATCHES = {
    "die": patch.object(dmao.controller, "apply_plan", apply_or_die),
    "disagree": patch.object(dmao.controller, "averaged", different_scores),
    "empty": patch.object(GrowAndDrop, "_plan", plan_without_ffn),
}


def main(folder: str, *runs: str) -> None:
    dist.init_process_group("gloo")
    for run in runs:
        name, _, what = run.partition("=")
        if what.startswith("sharded"):
            compare_sharded(Path(folder) / name, die=what == "sharded_die")
            continue
        try:
            with PATCHES.get(what, nullcontext()):
                train(tiny_config(*SETTINGS), Path(folder) / name, TinySource())
        except RuntimeError as error:
            if what != "disagree":
                raise
            print(f"rank {dist.get_rank()}: {name}: {error}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
