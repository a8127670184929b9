"""Several processes train as one does, agree on every plan, and lose nothing when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dmao import checkpoint
from dmao.controller import GrowAndDrop
from dmao.distributed import Team, rewrap
from dmao.metrics import read_json_lines
from dmao.trainer import train
from torch import nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from tests.trainer import several_ranks
from tests.trainer.several_ranks import SETTINGS, plan_without_ffn
from tests.trainer.sharded_ranks import compare_sharded
from tests.trainer.tiny import TinySource, losses, tiny_config


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """Processes begin as forks of one that has imported everything, which takes seconds each time."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")  # the launcher sets it, and handlers
        multiprocessing.set_forkserver_preload([several_ranks.__name__])
        yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


def run(ranks: int, folder: Path, *runs: str) -> tuple[bool, str]:
    """What torchrun does with several_ranks.py: whether a rank failed, and what all of them said."""
    logs = folder / "logs"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )
    failed = False
    try:
        elastic_launch(config, several_ranks.main)(str(folder), *runs)
    except ChildFailedError:
        failed = True
    return failed, "".join(path.read_text() for path in sorted(logs.rglob("*.log")))


def rows(run_dir: Path, name: str) -> list[dict[str, object]]:
    return list(read_json_lines(run_dir / name))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config(*SETTINGS), tmp_path_factory.mktemp("alone"), TinySource()).run_dir


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of what two ranks did, and what they said. The last run is one that a rank died in."""
    folder = tmp_path_factory.mktemp("two")
    failed, said = run(2, folder, "plain", "empty=empty", "disagree=disagree", "died=die")
    assert failed
    assert "rank 1 dies in an event" in said, said
    return folder, said


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two ranks with sharded parameters, of which one died."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "sharded").mkdir()
    failed, said = run(2, folder, "sharded=sharded_die")
    assert failed
    assert "rank 1 dies in an event" in said, said
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, two: tuple[Path, str], sharded: Path) -> tuple[Path, str]:
    """The folder of four ranks that went on from both, and what they said."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(two[0] / "died", folder / "died")
    shutil.copytree(sharded / "sharded", folder / "sharded")
    failed, said = run(4, folder, "died", "sharded=sharded")
    assert not failed, said
    return folder, said


def assert_equal_to_rounding(run_dir: Path, expected: Path) -> None:
    """Losses, events, weights and moments."""
    found, wanted = (losses(rows(folder, "metrics.jsonl")) for folder in (run_dir, expected))
    assert [step for step, _ in found] == [step for step, _ in wanted] == list(range(1, 25))
    torch.testing.assert_close([loss for _, loss in found], [loss for _, loss in wanted], rtol=1e-3, atol=0)
    for here, there in zip(rows(run_dir, "events.jsonl"), rows(expected, "events.jsonl"), strict=True):
        assert here["counts_after"] == there["counts_after"]
        assert here["digest"] == there["digest"]
    states = [checkpoint.load_latest(folder / "checkpoints")[1] for folder in (run_dir, expected)]
    for name, there in states[1]["model"].items():
        if "attention.k.bias" not in name:  # its gradient is zero but for rounding, of which Adam makes steps
            torch.testing.assert_close(states[0]["model"][name], there, rtol=0.05, atol=2e-3)
    assert states[0]["controller"]["structure"] == states[1]["controller"]["structure"]
    for here, there in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert here["exp_avg"].shape == there["exp_avg"].shape


def test_two_ranks_train_as_one_process(two: tuple[Path, str], alone: Path) -> None:
    assert_equal_to_rounding(two[0] / "plain", alone)


def test_a_module_without_components(tmp_path: Path, two: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrowAndDrop, "_plan", plan_without_ffn)
    assert_equal_to_rounding(two[0] / "empty", train(tiny_config(*SETTINGS), tmp_path, TinySource()).run_dir)


def test_disagreement_is_an_error_before_anything_changes(two: tuple[Path, str]) -> None:
    for rank in range(2):
        assert f"rank {rank}: disagree: GrowAndDrop: the plan differs between ranks: rank 0 has" in two[1]
    assert not rows(two[0] / "disagree", "events.jsonl")


def test_a_rank_dies_in_an_event_and_one_process_goes_on(tmp_path: Path, two: tuple[Path, str], alone: Path) -> None:
    died = two[0] / "died"
    assert not rows(died, "events.jsonl")
    assert checkpoint.load_latest(died / "checkpoints")[1]["place"]["step"] == 5
    shutil.copytree(died, tmp_path / "one")
    assert_equal_to_rounding(train(tiny_config(*SETTINGS), tmp_path / "one", TinySource()).run_dir, alone)


def test_four_ranks_go_on(four: tuple[Path, str], alone: Path) -> None:
    assert_equal_to_rounding(four[0] / "died", alone)  # batches of 3 utterances leave one of four without


def test_sharded_parameters_train_as_whole_ones(four: tuple[Path, str]) -> None:
    """fully_shard in slots storage: losses, scores, plans and weights of two ranks, then of four."""
    assert "4 ranks, 8 steps: equal" in four[1]


def test_one_process_goes_on_with_sharded_parameters(sharded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        compare_sharded(sharded / "sharded")
    finally:
        dist.destroy_process_group()
    assert "1 ranks, 8 steps: equal" in capsys.readouterr().out


def test_a_wrapper_made_anew_has_the_options_and_warns_of_nothing(
    workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        made = []
        init = DistributedDataParallel.__init__
        monkeypatch.setattr(
            DistributedDataParallel, "__init__", lambda *args, **given: (made.append(given), init(*args, **given))[1]
        )
        several = {"find_unused_parameters": True, "bucket_cap_mb": 3, "gradient_as_bucket_view": True}
        for options in ({}, several, {"broadcast_buffers": False}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrapped = DistributedDataParallel(nn.Linear(2, 2), **options)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                anew = rewrap(wrapped)
            assert options.items() <= made[-1].items()  # also what matters while it is made
            assert anew is not wrapped
            assert anew.module is wrapped.module
            for option in (
                "broadcast_buffers",
                "bucket_bytes_cap",
                "find_unused_parameters",
                "gradient_as_bucket_view",
            ):
                assert getattr(anew, option) == getattr(wrapped, option), option
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_make_up_the_batch(size: int) -> None:
    batch = next(TinySource().train_batches(0))
    shares = [Team(rank, size).share(batch) for rank in range(size)]
    assert sorted(id for share, weight in shares if weight for id in share.ids) == sorted(batch.ids)
    for share, weight in shares:
        assert weight in (0.0, 1.0)
        assert share.features.shape[1] == int(share.feature_lengths.max())
        assert len(share.targets) == int(share.target_lengths.sum())
