"""adamw_importance_ in Triton: against torch.optim.AdamW in float64, and against importance_, to the bit."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels.ops.importance.reference import METRICS
from dmao_kernels.testing import assert_close_to_oracle
from tests.ops.test_adamw_importance import Problem
from tests.triton.test_importance import FLOATS, SHAPES, surrounded

LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs")


def on(device: str, problem: Problem, steps_on: str = "cpu") -> Problem:
    """The same on a device, but for what the operator reads on the CPU; steps are there or here."""
    other = problem.copy()
    for name in LISTS:
        setattr(other, name, [t.to(device) for t in getattr(other, name)])
    other.steps = [t.to(steps_on) for t in other.steps]
    other.ema, other.inverse_count = other.ema.to(device), other.inverse_count.to(device)
    other.grad_factor = None if other.grad_factor is None else other.grad_factor.to(device)
    return other


def state(problem: Problem) -> dict[str, list[Tensor]]:
    return {name: [t.cpu() for t in tensors] for name, tensors in problem.state().items()}


def step(device: str, problem: Problem, steps_on: str = "cpu", **changes: Any) -> dict[str, list[Tensor]]:
    """The state after a step on the device; the problem itself stays as it is."""
    there = on(device, problem, steps_on)
    dmao_kernels.adamw_importance_(**{**vars(there), **changes})
    return state(there)


def check(device: str, problem: Problem) -> dict[str, list[Tensor]]:
    ours, same, truth = step(device, problem), problem.torch(), problem.torch(torch.float64)
    for name, tensors in ours.items():
        for i, tensor in enumerate(tensors):
            if name == "steps":
                assert tensor == same[name][i]
            else:
                assert_close_to_oracle(tensor, same[name][i], truth[name][i], name=f"{name}[{i}]")
    return ours


def equal(a: dict[str, list[Tensor]], b: dict[str, list[Tensor]]) -> bool:
    return all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize("scored", ["all", "none", "alternate"])
def test_all_shapes_in_one_launch(scored: str, device: str) -> None:
    problem = Problem(SHAPES, scored=scored)
    assert equal(check(device, problem), step(device, problem))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_and_dtypes(dtype: torch.dtype, metric: str, device: str) -> None:
    problem = Problem([(3, 5, 7), (2, 1, 264), (9, 2, 32)], dtype)
    problem.metric, problem.grad_factor = metric, torch.tensor(0.7)
    check(device, problem)


def test_float16(device: str) -> None:
    """Against the reference, since its moments cannot be compared with float64 by the largest one: squares vanish."""
    problem = Problem([(3, 5, 7), (2, 1, 264)], torch.float16)
    found, expected = step(device, problem), problem.run("reference")
    for name, tensors in found.items():
        for ours, reference in zip(tensors, expected[name], strict=True):
            torch.testing.assert_close(ours, reference, rtol=2e-3, atol=1e-6)


def test_mixed_dtypes(device: str) -> None:
    problem, other = Problem([(3, 5, 7), (2, 1, 264)]), Problem([(3, 5, 7), (2, 1, 264)], torch.bfloat16)
    for name in LISTS:
        getattr(problem, name)[1] = getattr(other, name)[1]
    check(device, problem)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_importance(metric: str, device: str) -> None:
    problem = Problem(SHAPES, scored="all")
    problem.metric, problem.grad_factor = metric, torch.tensor(0.3)
    there = on(device, problem)
    dmao_kernels.importance_(
        there.ema, there.params, there.grads, there.segments, there.inverse_count, there.metric, there.beta
    )
    assert torch.equal(step(device, problem)["ema"][0], there.ema.cpu())


def test_steps_on_the_device_and_on_the_host(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.optim.AdamW keeps them with fused=True, and without."""
    problem = Problem([(3, 5, 7), (2, 1, 264), (1, 9, 1)])
    there = step(device, problem, steps_on=device)
    triton_module = importlib.import_module("dmao_kernels.ops.adamw_importance.triton")
    if device == "cpu":  # where steps on the host are steps on the device
        monkeypatch.setattr(
            triton_module._Tables,
            "count_steps",
            lambda _, *steps: triton_module.count_steps(*steps, torch.device(device)),
        )
    here = step(device, problem)
    for name in here:
        for a, b in zip(here[name], there[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_native_kernel_agrees(device: str, native: str) -> None:
    problem = Problem([(3, 5, 7), (2, 2, 300), (1, 20, 1)])
    found, expected = step(device, problem), problem.run(native)
    for name in found:
        for a, b in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["taylor", "magnitude"])
def test_only_scored(metric: str, device: str) -> None:
    """Without a step a parameter is only scored, and its gradient may be empty."""
    problem = Problem([(3, 5, 7), (2, 1, 264), (2, 2, 9)], scored="all")
    problem.metric = metric
    for i, grad in ((0, problem.grads[0]), (2, torch.empty(0))):
        problem.steps[i], problem.exp_avgs[i], problem.exp_avg_sqs[i] = torch.empty(0), torch.empty(0), torch.empty(0)
        problem.grads[i] = grad
    found, expected = step(device, problem), problem.run("reference")
    for i in (0, 2):
        assert torch.equal(found["params"][i], problem.params[i])
    torch.testing.assert_close(found["ema"][0], expected["ema"][0])
    torch.testing.assert_close(found["params"][1], expected["params"][1])


def test_nothing_around_tensors_is_touched(device: str) -> None:
    problem = Problem([(3, 5, 7), (2, 2, 300)])
    expected = step(device, problem)
    there = on(device, problem)
    for name in LISTS:
        setattr(there, name, [surrounded(t) for t in getattr(there, name)])
    dmao_kernels.adamw_importance_(**vars(there))
    assert equal(state(there), expected)
    for name in LISTS:
        for tensor in getattr(there, name):
            whole = tensor.new_empty(0).set_(tensor.untyped_storage())
            assert int(whole.isnan().sum()) == whole.numel() - tensor.numel()


def test_many_steps_with_gradients_that_move(device: str) -> None:
    """The tables are made once; only addresses of gradients are uploaded anew."""
    problem = Problem([(3, 5, 7), (2, 1, 264)])
    ours, reference = on(device, problem), problem.copy()
    for i in range(3):
        grads = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for p in problem.params]
        ours.grads, reference.grads = [g.to(device) for g in grads], grads
        dmao_kernels.adamw_importance_(**vars(ours))
        with dmao_kernels.use_backend("reference"):
            dmao_kernels.adamw_importance_(**vars(reference))
    for name, tensors in state(ours).items():
        for a, b in zip(tensors, reference.state()[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_refused_values_change_nothing(device: str) -> None:
    problem = Problem([(3, 5, 7), (2, 1, 30)])
    there = on(device, problem)
    for changes, message in (
        ({"group_of": torch.tensor([0, 2])}, "group_of"),
        ({"segments": torch.tensor([[0, 3, 5, 8, 0]])}, "elements"),
        ({"segments": problem.segments.repeat(2, 1)}, "twice"),
    ):
        with pytest.raises(RuntimeError, match=message):
            dmao_kernels.adamw_importance_(**{**vars(there), **changes})
    assert equal(state(there), problem.state())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_large(dtype: torch.dtype, device: str) -> None:
    problem = Problem([(1, 8, 200_000), (1024, 8, 256), (1024, 300, 1), (2, 16, 70_001)] * 2, dtype)
    assert equal(check(device, problem), step(device, problem))


@pytest.mark.gpu
@pytest.mark.parametrize("steps_on", ["cpu", "cuda"])
def test_waits_for_nothing(steps_on: str, device: str) -> None:
    problem = Problem([(3, 5, 7), (2, 1, 264), (1, 9, 1)])
    problem.grad_factor = torch.tensor(0.5)
    there = on(device, problem, steps_on)
    dmao_kernels.adamw_importance_(**vars(there))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            there.grads = [g.clone() for g in there.grads]
            dmao_kernels.adamw_importance_(**vars(there))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_some_steps_on_the_device_others_on_the_host(device: str) -> None:
    problem = Problem([(3, 5, 7), (2, 1, 264), (1, 9, 1)])
    there = on(device, problem)
    there.steps[1] = there.steps[1].to(device)
    dmao_kernels.adamw_importance_(**vars(there))
    for name, tensors in step(device, problem).items():
        for a, b in zip(tensors, state(there)[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
