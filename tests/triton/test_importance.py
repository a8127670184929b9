"""importance_ in Triton: against float64 and the native kernel, for all that a piece can be; tables that stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels.ops.importance.reference import METRICS
from dmao_kernels.testing import assert_close_to_oracle
from tests.ops.test_importance import Problem

# (repeats, components, run): both sides of a row of a tile (256), of a tile (8 rows) and of a piece (32 rows); whole
# and broken vectors (8 entries); as long runs and as columns.
SHAPES = [
    (1, 1, 1),
    (1, 17, 1),
    (3, 5, 7),
    (7, 2, 256),
    (7, 2, 255),
    (8, 1, 264),
    (1, 2, 8200),
    (2, 1, 8192),
    (33, 3, 86),
    (65, 2, 4),
]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def on(device: str, problem: Problem, metric: str = "taylor", **changes: object) -> Tensor:
    """The averages after an update on the device; the problem stays as it is."""
    tensors = {name: [t.to(device) for t in getattr(problem, name)] for name in ("weights", "grads")}
    ema, inverse_count = problem.ema.to(device, copy=True), problem.inverse_count.to(device)
    dmao_kernels.importance_(
        **{
            **tensors,
            "ema": ema,
            "segments": problem.segments,
            "inverse_count": inverse_count,
            "metric": metric,
            "beta": 0.9,
            **changes,
        }
    )
    return ema.cpu()


def check(device: str, problem: Problem, metric: str = "taylor") -> Tensor:
    found = on(device, problem, metric)
    assert_close_to_oracle(found, problem.run("reference", metric), problem.oracle(metric))
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_all_shapes_in_one_launch(metric: str, device: str) -> None:
    problem = Problem(SHAPES)
    assert torch.equal(check(device, problem, metric), on(device, problem, metric))


@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("weight_dtype", FLOATS)
def test_dtypes(weight_dtype: torch.dtype, grad_dtype: torch.dtype, device: str) -> None:
    check(device, Problem([(3, 5, 7), (2, 1, 600)], weight_dtype, grad_dtype))


def test_mixed_dtypes(device: str) -> None:
    problem = Problem([(3, 5, 7), (2, 1, 264), (1, 20, 1)])
    problem.weights[1], problem.grads[1] = problem.weights[1].bfloat16(), problem.grads[1].half()
    problem.weights[2] = problem.weights[2].half()
    check(device, problem)


def test_native_kernel_agrees(device: str, native: str) -> None:
    problem = Problem([(3, 5, 7), (2, 2, 300), (1, 20, 1)])
    torch.testing.assert_close(on(device, problem), problem.run(native), rtol=1e-5, atol=1e-7)


def test_addresses_that_vectors_cannot_read(device: str) -> None:
    problem = Problem([(2, 3, 264), (9, 2, 32)])
    for tensors in (problem.weights, problem.grads):
        tensors[:] = [torch.empty(t.numel() + 1, device=device)[1:].view(t.shape).copy_(t) for t in tensors]
    expected = on(device, problem)
    problem.weights, problem.grads = ([t.clone() for t in tensors] for tensors in (problem.weights, problem.grads))
    assert torch.allclose(expected, on(device, problem), rtol=1e-6, atol=0)


def test_nothing_around_tensors_is_read(device: str) -> None:
    problem = Problem([(3, 5, 7), (2, 2, 300)])
    expected = on(device, problem)
    weights, grads = ([surrounded(t.to(device)) for t in tensors] for tensors in (problem.weights, problem.grads))
    assert torch.equal(expected, on(device, problem, weights=weights, grads=grads))


def surrounded(tensor: Tensor) -> Tensor:
    """The same values, aligned alike, with NaN before and behind."""
    room = tensor.new_full((tensor.numel() + 64,), torch.nan)
    return room[32:-32].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_gradient_keeps_that_component_only(bad: float, device: str) -> None:
    problem = Problem([(2, 4, 70), (1, 3, 300)])
    clean = on(device, problem)
    problem.grads[0][1, 2, 5], problem.grads[1][0, 1, 299] = bad, bad
    kept = torch.tensor([2, 5])
    clean[kept] = problem.ema[kept]
    assert torch.equal(on(device, problem), clean)


def test_without_gradients(device: str) -> None:
    problem = Problem([(2, 4, 7), (1, 3, 300)])
    whole = on(device, problem)
    problem.grads[0] = torch.empty(0)
    found = on(device, problem)
    assert torch.equal(found, torch.cat([problem.ema[:4], whole[4:]]))
    problem.grads[1] = torch.empty(0)
    assert torch.equal(on(device, problem), problem.ema)
    assert not torch.equal(on(device, problem, "magnitude"), problem.ema)


def test_two_tensors_of_one_component(device: str) -> None:
    problem = Problem([(2, 4, 7), (1, 4, 300)])
    apart = on(device, problem) - 0.9 * problem.ema
    problem.segments[1, 4] = 0
    problem.ema, problem.inverse_count = problem.ema[:4].contiguous(), torch.ones(4)
    counts = torch.tensor([[14.0], [300.0]])
    expected = 0.9 * problem.ema + (apart.view(2, 4) * counts).sum(0)
    torch.testing.assert_close(on(device, problem), expected)


def test_empty(device: str) -> None:
    problem = Problem([(0, 2, 5), (3, 0, 5), (3, 2, 0)])
    assert torch.equal(on(device, problem), problem.ema)
    nothing = Problem([])
    assert on(device, nothing).numel() == 0


def test_non_contiguous_inputs(device: str) -> None:
    problem = Problem([(4, 6, 10)])
    weights = [t.to(device).transpose(0, 2).contiguous().transpose(0, 2) for t in problem.weights]
    assert torch.equal(on(device, problem), on(device, problem, weights=weights))


def test_tables_follow_tensors_that_move(device: str) -> None:
    """The same shapes at other addresses, and back: what was uploaded for the first must not be used for the others."""
    first, second = Problem([(3, 5, 7), (1, 2, 300)]), Problem([(3, 5, 7), (1, 2, 300)])
    expected = [on(device, first), on(device, second)]
    kept = [[t.to(device) for t in p.weights] for p in (first, second)]
    for _ in range(2):
        for problem, weights, result in zip((first, second), kept, expected, strict=True):
            assert torch.equal(on(device, problem, weights=weights), result)


def test_wrong_segment_changes_nothing(device: str) -> None:
    problem = Problem([(2, 4, 3)])
    problem.segments = torch.tensor([[0, 2, 4, 3, 0], [0, 2, 4, 3, 1]])
    ema = problem.ema.to(device, copy=True)
    with pytest.raises(RuntimeError, match="holds components 1 to 4, but ema has 4"):
        on(device, problem, ema=ema)
    assert torch.equal(ema.cpu(), problem.ema)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_large(dtype: torch.dtype, device: str) -> None:
    problem = Problem([(1, 8, 200_000), (1024, 8, 256), (1024, 3000, 1), (2, 16, 70_001)] * 3, dtype, dtype)
    assert torch.equal(check(device, problem), on(device, problem))


@pytest.mark.gpu
def test_waits_for_nothing(device: str) -> None:
    problem = Problem([(3, 5, 7), (1, 2, 300)])
    weights, grads = ([t.to(device) for t in tensors] for tensors in (problem.weights, problem.grads))
    ema, inverse_count = problem.ema.to(device), problem.inverse_count.to(device)
    dmao_kernels.importance_(ema, weights, grads, problem.segments, inverse_count)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            dmao_kernels.importance_(ema, weights, grads, problem.segments, inverse_count, "signed")
            grads = [g.clone() for g in grads]
    finally:
        torch.cuda.set_sync_debug_mode("default")
