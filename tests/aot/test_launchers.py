"""What launchers must not do: wait for the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmao_kernels.testing.mock_driver import mock_gpu
from tests.aot.problems import PROBLEMS

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "repeat_interleave.Tensor")
# These read tensors that belong to the host; that their kernels do not wait is tested in tests/triton.
OF_THE_HOST = ("importance", "adamw_importance", "gather_components")


class NoWaiting(TorchDispatchMode):
    """Raises where a launcher calls what would wait for the GPU; what comes before the operator may."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self._inside = False

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if operator.namespace == "dmao_triton":
            self.operators += 1
            self._inside = True
            with self:  # the launcher below the operator is to be seen, too
                result = operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)
            self._inside = False
            return result
        name = operator.name().removeprefix("aten::")
        assert not (self._inside and name.startswith(WAITING)), f"a launcher waits for the GPU in {name}"
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("problem", [name for name in PROBLEMS if name not in OF_THE_HOST])
def test_launchers_do_not_wait(problem):
    with mock_gpu(90), NoWaiting() as mode:
        PROBLEMS[problem](torch.bfloat16)
    assert mode.operators >= 2


def test_waiting_is_seen():
    mode = NoWaiting()
    mode._inside = True
    with mode, pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(1).item()
