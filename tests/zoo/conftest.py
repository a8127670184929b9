"""What the zoo needs before a package is imported, and the table that it leaves behind."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.zoo.models import REAL

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchaudio", "torchvision", "timm", "transformers", "espnet", "speechbrain")

if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
    # The extension of PyPI's torchvision needs CUDA; without it, torchvision misses these schemas on import.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

Table = dict[str, dict[str, str]]


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    """Rows by model; written to build/zoo.md at the end."""
    rows: Table = {}
    yield rows
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [
        "# Models of other packages, with random weights",
        "",
        "Made by `make test-zoo`. " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + f"; "
        f"{torch.get_num_threads()} threads. Steps: median ms of 7 times forward and backward in training, in turns; "
        f"{REAL}, 2 inputs; all else of small models.",
        "",
        "| " + " | ".join(["model", *columns]) + " |",
        "|" + "---|" * (len(columns) + 1),
        *("| " + " | ".join([name, *(row.get(column, "") for column in columns)]) + " |" for name, row in rows.items()),
    ]
    path = ROOT / "build" / "zoo.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n\n{path.read_text(encoding='utf-8')}")
