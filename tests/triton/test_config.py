"""Who chooses tiles: the table, what was measured earlier, or a measurement. The times of a GPU are made up here."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import triton

from dmao_kernels.ops._triton import config

SMALL, LARGE, HUGE = ({"ROWS": rows, "COLUMNS": 64} for rows in (32, 64, 512))
TABLE: config.Table = {
    80: {"half": [SMALL, LARGE, HUGE], "half few": [SMALL]},
    100: {"half": [LARGE]},
    "hip": {"half": [HUGE]},
}
CPU = torch.device("cpu")


class Gpu:
    """One of capability 9.0 on which LARGE is fastest, and HUGE does not fit."""

    def __init__(self) -> None:
        self.launches: list[config.Config] = []

    def run(self, chosen: config.Config) -> float:
        if chosen == HUGE:
            raise triton.runtime.errors.OutOfResources(2, 1, "shared memory")
        self.launches.append(chosen)
        return 1.0 / chosen["ROWS"]

    def choose(self, key: tuple[int | str, ...] = (), kind: str = "half") -> config.Config:
        return config.choose("product", TABLE, kind, CPU, key, self.run)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    monkeypatch.setattr(config, "architecture", lambda device: 90)
    monkeypatch.setattr(config, "processors", lambda device: 4)
    monkeypatch.setattr(triton.testing, "do_bench", lambda call, **options: call())
    monkeypatch.setenv("DMAO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DMAO_TRITON_AUTOTUNE", raising=False)
    config._measured.cache_clear()
    yield Gpu()
    config._measured.cache_clear()


def mode(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """As a new process would see it."""
    monkeypatch.setenv("DMAO_TRITON_AUTOTUNE", value)
    config._measured.cache_clear()


def test_table_chooses_unless_asked(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.choose() == SMALL
    mode(monkeypatch, "")  # as if it were not set
    assert gpu.choose() == SMALL
    assert not gpu.launches


@pytest.mark.parametrize(("arch", "entry"), [(75, 80), (80, 80), (90, 80), (100, 100), (120, 100), ("gfx942", "hip")])
def test_entry_of_an_architecture(arch: int | str, entry: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "architecture", lambda device: arch)
    assert config.candidates(TABLE, "half", CPU) is TABLE[entry]["half"]


def test_full_measures_once_and_keeps(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    mode(monkeypatch, "full")
    assert gpu.choose((384,)) == LARGE
    assert gpu.launches == [SMALL, LARGE]
    assert gpu.choose((384,)) == LARGE
    assert len(gpu.launches) == 2
    assert gpu.choose((512,)) == LARGE  # another key
    assert len(gpu.launches) == 4
    mode(monkeypatch, "full")
    assert gpu.choose((384,)) == LARGE
    assert len(gpu.launches) == 4


def test_cache_takes_what_was_measured_and_measures_nothing(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    mode(monkeypatch, "full")
    gpu.choose((384,))
    gpu.launches.clear()
    mode(monkeypatch, "cache")
    assert gpu.choose((384,)) == LARGE
    assert gpu.choose((512,)) == SMALL
    assert not gpu.launches
    mode(monkeypatch, "off")
    assert gpu.choose((384,)) == SMALL


def test_processes_add_to_one_file(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    mode(monkeypatch, "full")
    gpu.choose((1,))
    own = dict(config._measured(90))
    mode(monkeypatch, "full")
    gpu.choose((2,))  # another process
    with monkeypatch.context() as this:
        this.setattr(config, "_measured", lambda arch: own)  # this process has not seen that
        gpu.choose((3,))
    assert sorted(json.loads(config._file(90).read_text())) == ["product half 1", "product half 2", "product half 3"]


def test_a_configuration_that_left_the_table_is_not_taken(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    config._keep(90, "product half", {"ROWS": 7, "COLUMNS": 64})
    mode(monkeypatch, "cache")
    assert gpu.choose() == SMALL


def test_a_launch_that_may_not_be_repeated_is_not_measured(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    mode(monkeypatch, "full")
    assert config.choose("product", TABLE, "half", CPU) == SMALL


def test_unreadable_or_unwritable_cache_is_logged(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dmao_kernels")
    config._file(90).parent.mkdir()
    config._file(90).write_text("{half of a file")
    mode(monkeypatch, "cache")
    assert gpu.choose() == SMALL
    assert "is not read" in caplog.text
    (tmp_path / "file").touch()
    monkeypatch.setenv("DMAO_CACHE_DIR", str(tmp_path / "file"))
    mode(monkeypatch, "full")
    assert gpu.choose() == LARGE
    assert "is not written" in caplog.text


def test_unknown_mode_is_refused(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    mode(monkeypatch, "max")
    with pytest.raises(ValueError, match=r"DMAO_TRITON_AUTOTUNE: must be one of off, cache, full, got 'max'"):
        gpu.choose()


def test_few_tiles_take_small_ones(gpu: Gpu) -> None:
    """SMALL cuts 64 x 64 into 2 tiles, fewer than there are processors, and 128 x 64 into 4."""
    assert config.choose_tiles("product", TABLE, torch.bfloat16, CPU, (128, 64)) is TABLE[80]["half"][0]
    assert config.choose_tiles("product", TABLE, torch.bfloat16, CPU, (64, 64)) is TABLE[80]["half few"][0]
