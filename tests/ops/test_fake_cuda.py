"""Operations on fake tensors of device "cuda", as tracing for a GPU has them, on a machine that may have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import dmao_kernels as dk
from dmao_kernels._library import operators
from dmao_kernels.testing.devices import triton_on_cpu
from tests.aot.problems import BATCH, FRAMES, PROBLEMS, ROWS, WIDTH, offsets

pytest.importorskip("triton")

# A build of PyTorch without CUDA cannot take int(fake GPU tensor), with which pack begins.
OF_CUDA = [name for name in PROBLEMS if name != "packing"]
FORWARD_ONLY = ("importance", "adamw_importance", "gather_components")


class Calls(TorchDispatchMode):
    """Notes calls of the library's operators; `also` is called with each of them, and with its result."""

    def __init__(self, also: Callable[..., None] | None = None) -> None:
        super().__init__()
        self.names: list[str] = []
        self._also = also

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operator(*arguments, **(options or {}))
        if operator.namespace.startswith("dmao"):
            self.names.append(f"{operator.namespace}.{operator.__name__.removesuffix('.default')}")
            if self._also:
                self._also(operator, arguments, result)
        return result


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """What is made here is a fake tensor on a GPU. Nothing is recorded: autograd asks for the real device."""
    with FakeTensorMode(shape_env=ShapeEnv()) as mode, torch.device("cuda"), torch.no_grad():
        yield mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("problem", OF_CUDA)
def test_forward_takes_the_triton_operator(problem, dtype):
    with fake_cuda(), Calls() as calls:
        PROBLEMS[problem](dtype)
    assert len(calls.names) == 1
    assert calls.names[0].startswith("dmao_triton.")
    assert problem.startswith(calls.names[0].removeprefix("dmao_triton.").rstrip("_"))


def test_packing():
    with fake_cuda(), Calls() as calls:
        packed = operators("triton").pack(torch.empty(BATCH, FRAMES, WIDTH), offsets(), ROWS)
        padded = dk.unpack(packed, offsets(), FRAMES)
    assert calls.names == ["dmao_triton.pack", "dmao_triton.unpack"]
    assert (packed.device.type, packed.shape) == ("cuda", (ROWS, WIDTH))
    assert (padded.device.type, padded.shape) == ("cuda", (BATCH, FRAMES, WIDTH))


@pytest.mark.parametrize("problem", [name for name in OF_CUDA if name not in FORWARD_ONLY])
def test_backward_stays_on_the_gpu(problem):
    """Every operator of forward and backward, called once more with its arguments on a fake GPU."""

    def again(operator: Any, arguments: Any, result: Any) -> None:
        on_gpu = tree_map_only(Tensor, lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype), arguments)
        found = operator(*on_gpu)
        for ours, theirs in zip(_tensors(found), _tensors(result), strict=True):
            assert (ours.device.type, ours.shape, ours.dtype) == ("cuda", theirs.shape, theirs.dtype)

    def on_fake_gpu(*call: Any) -> None:
        with fake_cuda():
            again(*call)

    with FakeTensorMode(shape_env=ShapeEnv()), triton_on_cpu(), Calls(on_fake_gpu) as calls:
        PROBLEMS[problem](torch.bfloat16)
    assert len(calls.names) >= 2
    assert all(name.startswith("dmao_triton.") for name in calls.names)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("problem", OF_CUDA)
def test_compile_sees_one_operator(problem):
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with fake_cuda():
        torch.compile(PROBLEMS[problem], fullgraph=True, backend=keep)(torch.bfloat16)
    (graph,) = graphs
    ours = [str(node.target) for node in graph.graph.nodes if str(node.target).startswith("dmao")]
    assert len(ours) == 1
    assert ours[0].startswith("dmao_triton.")
