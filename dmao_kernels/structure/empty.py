"""How an ordinary module that lost all its components contributes nothing."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmao_kernels.structure.register import find_family


class EmptyForward:
    """Stands in for ``forward`` on one instance: zeros of the shape of its first argument, nothing launched.

    Of a tuple (x, more) it makes (zeros, more). ``returns`` is the number of values: (zeros, None, ...). ``first`` is
    the first argument's name: where all are given by name, they may come in any order.

    It lives in the instance's ``__dict__``, so it is copied and pickled with the module and stays out of the
    state dict. ``previous`` is the instance-level forward that was there before, if any.
    """

    def __init__(self, module: nn.Module, previous: Callable[..., Any] | None, returns: int) -> None:
        self.previous, self.returns = previous, returns
        self.first = next(islice(signature(type(module).forward).parameters, 1, None), "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else kwargs.get(self.first, next(iter(kwargs.values()), None))
        if isinstance(first, tuple) and first and isinstance(first[0], Tensor):
            return torch.zeros_like(first[0]), *first[1:]
        if not isinstance(first, Tensor):
            raise TypeError(f"empty module: the first argument must be a tensor, got {type(first).__name__}")
        zeros = torch.zeros_like(first)
        return zeros if self.returns == 1 else (zeros, *[None] * (self.returns - 1))


def handles_empty(module: nn.Module) -> bool:
    """Whether the module knows what to do without components: it has a property ``empty``, as ours do."""
    return hasattr(type(module), "empty")


def set_empty(module: nn.Module, empty: bool) -> None:
    """Let an ordinary module answer with zeros, or compute again. Calling it twice changes nothing."""
    current = module.__dict__.get("forward")
    if handles_empty(module) or isinstance(current, EmptyForward) == empty:
        return
    if empty:
        family = find_family(module)
        module.forward = EmptyForward(module, current, 1 if family is None else family.returns)
    elif (previous := cast(EmptyForward, current).previous) is None:
        del module.forward
    else:
        module.forward = previous
