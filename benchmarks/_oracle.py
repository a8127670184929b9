"""What the benchmarks of single operations share: the gate against float64, and forward alone or with backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmao_kernels.testing import assert_close_to_oracle, outputs_and_gradients, to_float64


def check(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    *inputs: Any,
    grad: Tensor,
    slack: float = 1.0,
    gradient_slack: float | None = None,
    **named: Any,
) -> None:
    """Raises AssertionError unless result and gradients are as close to float64 as those of plain PyTorch are.

    slack, gradient_slack: of assert_close_to_oracle; the latter None: as slack.
    """
    exact = to_float64(inputs), to_float64(named)
    (found, gradients), (torchs, torch_gradients), (truth, true_gradients) = (
        outputs_and_gradients(function, *arguments, grad_output=grad, **keywords)
        for function, (arguments, keywords) in ((ours, (inputs, named)), (plain, (inputs, named)), (plain, exact))
    )
    assert_close_to_oracle(found, torchs, truth, slack=slack)
    slack = slack if gradient_slack is None else gradient_slack
    for key, gradient in true_gradients.items():
        assert_close_to_oracle(gradients[key], torch_gradients[key], gradient, slack=slack, name=f"gradient {key}")


def run(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, backward: bool
) -> Callable[[], object]:
    """The call to be timed: with the gradients of all inputs that require one, or on inputs that require none."""
    if backward:
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        return lambda: torch.autograd.grad(function(*inputs), leaves, grad)
    frozen = [tensor.detach() for tensor in inputs]
    return lambda: function(*frozen)
