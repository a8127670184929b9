"""`dmao info`: what is installed, which backends run, and why the others do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from dmao.cli import main

import dmao_kernels
from dmao_kernels import dispatch, gpu_choice, info


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["info", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_json() -> None:
    found = json.loads(run("--json"))
    assert found["versions"]["dmao_kernels"] == dmao_kernels.__version__
    assert set(found["backends"]) == set(dmao_kernels.BACKENDS) - {"reference"}
    assert found["operations"]["masked_linear"]["triton"] == ["float32", "bfloat16", "float16"]
    assert set(found["faster_on_this_gpu"].values()) <= set(gpu_choice.CHOICES)


def test_text_gives_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._WHY_NOT, "cuda", "no nvcc at that time")
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    lines = [line.split(maxsplit=1) for line in run().splitlines()]
    assert ["cuda", "no: no nvcc at that time"] in lines
    assert ["triton", "no: Triton is not installed (pip install 'dmao-kernels[triton]')"] in lines
    assert ["dmao_kernels", dmao_kernels.__version__] in lines


def test_a_build_with_cuda_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"compiler": "GNU 1", "isas": ["portable"], "cuda_compiler": "13.0", "cuda_architectures": "80-real 120"}
    monkeypatch.setattr(info, "build", lambda: built)
    assert "nvcc 13.0, for 80-real 120" in run()


@pytest.fixture
def on_h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """As on an H100 without a table of its own; gives what forgets the table that was read."""
    monkeypatch.setenv("DMAO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gpu_choice, "architecture", lambda: "sm_90")
    monkeypatch.setattr(gpu_choice, "_SHIPPED", {"sm_90": {"importance_": "cuda"}})
    gpu_choice._measured.cache_clear()
    yield gpu_choice._measured.cache_clear
    gpu_choice._measured.cache_clear()


def test_what_was_measured_here_goes_first(on_h100: Callable[[], None]) -> None:
    assert gpu_choice.fastest("importance_") == "cuda"
    assert gpu_choice.fastest("masked_linear") == "triton"
    gpu_choice.write({"importance_": "triton", "masked_linear": "cuda"})
    on_h100()
    assert gpu_choice.fastest("importance_") == "triton"
    assert gpu_choice.fastest("masked_linear") == "cuda"


def test_what_was_measured_before_stays(on_h100: Callable[[], None]) -> None:
    gpu_choice.write({"masked_linear": "cuda", "component_ffn": "cuda"})
    gpu_choice.write({"masked_linear": "triton"})
    on_h100()
    assert gpu_choice.fastest("component_ffn") == "cuda"
    assert gpu_choice.fastest("masked_linear") == "triton"


@pytest.mark.parametrize("content", ['{"sm_90": {"masked_linear": "fast"}}', "{", "[" * 100_000, "[]"])
def test_a_damaged_table_is_an_error(on_h100: Callable[[], None], content: str) -> None:
    gpu_choice.path().write_text(content)
    with pytest.raises(ValueError, match=r"gpu_choice\.json: must map"):
        gpu_choice.fastest("masked_linear")


def test_a_table_that_may_not_be_read_is_as_none(
    on_h100: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied() -> object:
        raise PermissionError("not yours")

    monkeypatch.setattr(gpu_choice, "_read", denied)
    assert gpu_choice.fastest("importance_") == "cuda"
    assert "what was measured on this GPU is not read: not yours" in caplog.text
    with pytest.raises(PermissionError):  # nor is it written over
        gpu_choice.write({"importance_": "triton"})
    assert not gpu_choice.path().exists()
