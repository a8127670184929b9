"""A tiny corpus on disk, trained on by `dmao train` in processes that may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dmao.config import save_config

from tests.trainer.forked import Forked
from tests.trainer.runs import Runs
from tests.trainer.tiny import tiny_config
from tests.trainer.tones import make_tones


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    server = Forked(tmp_path_factory.mktemp("forked"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def runs(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The training that all of them do, and how it is when nothing happens to it."""
    folder: Path = tmp_path_factory.mktemp("runs")
    splits = ["train", "test", "dev"]
    corpus = make_tones(folder / "corpus", {split: ["a", "b", "c"] for split in splits})
    data = f"data={{root: {corpus}, labels: characters, batch_seconds: 2.0}}"
    config = tiny_config(data, "eval_splits=[dev, test]", "eval_every=8")
    save_config(config, folder / "config.yaml")
    return Runs.start(forked, folder, config)
