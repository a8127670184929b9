"""What the tests of all operations share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels.testing import (
    Poison,
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)

native = pytest.mark.skipif(dmao_kernels.cpu_capability() is None, reason="no native library")
BACKENDS = [pytest.param("cpu", marks=native), "reference"]
DTYPES = (torch.float32, torch.bfloat16)
SEED = torch.tensor([0x1234_5678_9ABC_DEF])


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_threads_do_not_change_a_bit(
    compute: Callable[[], Sequence[Tensor]], counts: Sequence[int] = (1, 2, 5, 2)
) -> None:
    """Nor does running again with as many threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            results.append(compute())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class CountedGraphs:
    """A backend for torch.compile, which has seen nothing yet: runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def assert_compiled_training_is_the_same(
    call: Callable[..., Tensor], *inputs: Any, grad_output: Tensor | None = None
) -> None:
    """Output and gradients of ``call(*inputs)``, compiled for any shape."""
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    y, grads = outputs_and_gradients(call, *inputs, grad_output=grad_output)
    other, other_grads = outputs_and_gradients(compiled, *inputs, grad_output=grad_output)
    torch.testing.assert_close(other, y)
    assert other_grads.keys() == grads.keys()
    for key in grads:
        torch.testing.assert_close(other_grads[key], grads[key])


def assert_passes_under(
    capability: str, run_python: Callable[..., subprocess.CompletedProcess[str]], file: str, select: str
) -> None:
    """The selected tests of a file pass with the kernels of one instruction set, in a process of its own.

    Skips where the CPU or the build has not got them, or where this process runs them already.
    """
    if capability == dmao_kernels.cpu_capability():
        pytest.skip("the other tests run this one")
    probe = run_python("-c", "import dmao_kernels", DMAO_CPU_CAPABILITY=capability)
    if "does not support" in probe.stderr or "must be one of" in probe.stderr:
        pytest.skip(f"{capability} is not available here")
    run = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", select), DMAO_CPU_CAPABILITY=capability
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def check_against_oracle(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: list[Any],
    *rest: Any,
    slack: float = 1.0,
    prepare: Callable[[list[Any]], None] | None = None,
    **options: Any,
) -> tuple[Tensor, dict[int | str, Tensor]]:
    """op(*inputs, *rest, **options) and all gradients, by the house's rule, from poisoned memory.

    prepare: changes the copies of the inputs that op gets, where that must not matter (dead parts).
    """
    with torch.no_grad():
        shape = reference(*inputs, *rest, **options).shape
    grad = torch.randn(shape).to(next(tensor for tensor in inputs if tensor is not None))
    poison = Poison()
    guarded = [poison.around(v) if isinstance(v, Tensor) and v.dtype.is_floating_point else v for v in inputs]
    if prepare is not None:
        with torch.no_grad():
            prepare(guarded)
    with nan_filled_empty():
        ours, our_grads = outputs_and_gradients(op, *guarded, *rest, grad_output=grad, **options)
    poison.check()
    same, same_grads = outputs_and_gradients(reference, *inputs, *rest, grad_output=grad, **options)
    truth, true_grads = outputs_and_gradients(reference, *to_float64(inputs), *rest, grad_output=grad, **options)
    assert_close_to_oracle(ours, same, truth, slack=slack)
    assert our_grads.keys() == true_grads.keys()
    for key, gradient in true_grads.items():
        assert_close_to_oracle(our_grads[key], same_grads[key], gradient, name=f"gradient {key}", slack=slack)
    return ours, our_grads
