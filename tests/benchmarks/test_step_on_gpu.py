"""The comparison of whole steps on a GPU, as far as it goes without one."""

from __future__ import annotations

import pytest
import torch
from dmao.config import load_config
from dmao.data.loader import Batch
from dmao.models import ConformerCTC
from dmao.step import build_model
from torch import nn

from benchmarks import step_on_gpu
from dmao_kernels import compact

TINY = ["device=cpu", "data.batch_seconds=15", "grow_and_drop.observe_every=1"]
TINY += ["model={width: 16, blocks: 1, head_dim: 4, kernel: 3, front_channels: [2, 4, 4, 2]}"]


def test_prints_ratio_and_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(step_on_gpu, "WARM", 0)
    monkeypatch.setattr(step_on_gpu, "ROUNDS", 2)
    step_on_gpu.run(load_config(None, TINY))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["ours", "plain PyTorch", "ours / plain", "memory"]
    assert lines[-1].startswith("memory: computed 0.0")


@pytest.fixture
def tiny() -> tuple[ConformerCTC, nn.Module, Batch]:
    model = build_model(load_config(None, TINY), step_on_gpu.OUTPUTS)
    return model, compact(model).train(), step_on_gpu.random_batch(15)


def test_output_layers_that_the_gate_does_not_ask() -> None:
    layers = ["model.blocks=2", "model.intermediate=[1]", "model.intermediate_output=own"]
    model = build_model(load_config(None, [*TINY, *layers]), step_on_gpu.OUTPUTS)
    step_on_gpu.check(model, compact(model).train(), step_on_gpu.random_batch(15), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_timed_that_is_wrong(tiny: tuple[ConformerCTC, nn.Module, Batch], precision: str) -> None:
    model, plain, batch = tiny
    step_on_gpu.check(model, plain, batch, precision)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        model.output.bias += torch.arange(step_on_gpu.OUTPUTS)
    with pytest.raises(AssertionError, match="loss: error"):
        step_on_gpu.check(model, plain, batch, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_gradient_is_timed_that_is_wrong(tiny: tuple[ConformerCTC, nn.Module, Batch], precision: str) -> None:
    model, plain, batch = tiny
    model.blocks[0].ffn1.w1.weight.register_hook(lambda gradient: 1.5 * gradient)
    with pytest.raises(AssertionError, match=r"gradient of blocks\.0\.ffn1\.w1\.weight"):
        step_on_gpu.check(model, plain, batch, precision)


def test_the_precision_that_is_timed_is_checked(tiny: tuple[ConformerCTC, nn.Module, Batch]) -> None:
    model, plain, batch = tiny
    model.output.register_forward_hook(lambda _, __, y: 2 * y if y.dtype == torch.bfloat16 else y)
    step_on_gpu.check(model, plain, batch, "fp32")
    with pytest.raises(AssertionError, match="exceeds"):
        step_on_gpu.check(model, plain, batch, "bf16")
