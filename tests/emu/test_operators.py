"""The operators in CUDA C++ before torch.library: schemas, gradients and fake tensors do what kernels do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dmao_kernels
from dmao_kernels import BlockMask
from tests.ops.attention_problems import make as attention_tensors
from tests.ops.common import SEED, ids
from tests.triton.test_adamw_importance import Problem as AdamWProblem
from tests.triton.test_importance import Problem as ImportanceProblem


class Recorded(TorchDispatchMode):
    """Every operator in CUDA C++ that is called, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "dmao_cuda":
            copies = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs or {}))
            self.calls.append((func, *copies))
        return func(*args, **(kwargs or {}))


def floats(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.bfloat16).requires_grad_() for shape in shapes]


def component_ffn() -> Tensor:
    x, w1, b1, w2, b2 = floats((9, 16), (24, 16), (24,), (16, 24), (16,))
    return dmao_kernels.component_ffn(x, w1, b1, w2, b2, ids(0, 2), components=3, p=0.2, seed=SEED)


def masked_linear() -> Tensor:
    x, weight, bias = floats((9, 32), (64, 32), (64,))
    mask = BlockMask.from_dense(torch.eye(4, 2) > 0, 16)
    return dmao_kernels.masked_linear(x, weight, bias, mask, activation="silu")


def block_attention() -> Tensor:
    tensors = attention_tensors(2, 19, 2, 16, torch.bfloat16, reach=18)
    return dmao_kernels.block_attention(**tensors, lengths=ids(19, 4), p=0.1, seed=SEED)


def importance() -> None:
    problem = ImportanceProblem([(3, 5, 7), (1, 2, 30)])
    dmao_kernels.importance_(problem.ema, problem.weights, problem.grads, problem.segments, problem.inverse_count)


def adamw_importance() -> None:
    dmao_kernels.adamw_importance_(**vars(AdamWProblem([(3, 5, 7), (2, 1, 30)])))


def gather_components() -> None:
    index = torch.tensor([[2, -1], [0, -1]])
    dmao_kernels.gather_components([torch.randn(2, 3, 5)], [index], [None])


OPERATORS = {
    component_ffn: {"component_ffn", "component_ffn_backward"},
    masked_linear: {"masked_linear", "masked_linear_backward"},
    block_attention: {"block_attention", "block_attention_backward"},
    importance: {"importance_"},
    adamw_importance: {"adamw_importance_"},
    gather_components: {"gather_components"},
}


@pytest.mark.parametrize("problem", OPERATORS, ids=lambda problem: problem.__name__)
def test_opcheck(problem: Callable[[], Tensor | None], emulated: None) -> None:
    with Recorded() as recorded:
        result = problem()
        if result is not None:
            result.sum().backward()
    assert {func.overloadpacket.__name__ for func, _, _ in recorded.calls} == OPERATORS[problem]
    for func, args, kwargs in recorded.calls:
        if func.overloadpacket.__name__ == problem.__name__:  # forward
            for tensor in args:
                if result is not None and isinstance(tensor, Tensor) and tensor.is_floating_point():
                    tensor.requires_grad_()
        torch.library.opcheck(func, args, kwargs)
