"""How kernels are launched: as Triton does, with less work on the host.

Triton looks at every argument of every launch, at its options and at many switches before it finds what it has compiled
for them: 15 to 40 microseconds, of which the launch takes few. Here the same distinctions make a key of one look at
each argument.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

_MOST = 1024  # compiled kernels that are remembered; most kernels have a few
_ALIGNMENT = 16
_WORD = 2**31
_AMD = torch.version.hip is not None  # where Triton also asks whether 32 bits reach all of a tensor's storage


class Kernel:
    """A kernel that the host launches: kernel[grid](arguments in order, then by name, and Triton's options).

    Of the numbers in `varying` no value is compiled for, only whether they fit into 32 bits; of other whole numbers
    also whether they are 1 and whether 16 divides them.
    """

    def __init__(self, function: Callable[..., None], varying: Sequence[str]) -> None:
        self._jit = triton.jit(function, do_not_specialize=list(varying))
        parameters = inspect.signature(function).parameters
        self._names = list(parameters)
        constant = [name for name, parameter in parameters.items() if parameter.annotation == "tl.constexpr"]
        self._varying = self._places(varying)
        self._constant = self._places(constant)
        self._others = self._places([name for name in self._names if name not in (*varying, *constant)])
        self._compiled: dict[tuple[Hashable, ...], Any] = {}

    def _places(self, names: Sequence[str]) -> list[int]:
        return [self._names.index(name) for name in names]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._jit[grid] if triton.knobs.runtime.interpret else functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        if len(arguments) < len(self._names):
            arguments += tuple([options.pop(name) for name in self._names[len(arguments) :]])
        key = (
            triton.runtime.driver.active.get_current_device(),
            *options.items(),
            *[arguments[i] for i in self._constant],
            *[-_WORD <= arguments[i] < _WORD for i in self._varying],
            *[_kind(arguments[i]) for i in self._others],
        )
        compiled = self._compiled.get(key)
        if compiled is None:
            if len(self._compiled) >= _MOST:
                self._compiled.clear()
            self._compiled[key] = self._jit[grid](*arguments, **options)
        else:
            compiled[(*grid, 1, 1)[:3]](*arguments)


def _kind(argument: Any) -> Hashable:
    """What Triton compiles for: as much as it looks at of an argument."""
    if type(argument) is int:  # as most of them are
        return argument == 1, argument % _ALIGNMENT == 0, -_WORD <= argument < _WORD
    if isinstance(argument, Tensor):
        near = _AMD and argument.untyped_storage().size() < _WORD
        return argument.dtype, argument.data_ptr() % _ALIGNMENT, near
    if isinstance(argument, float):
        return float
    kind: Hashable = argument
    return kind


def kernel(varying: Sequence[str] = ()) -> Callable[[Callable[..., None]], Kernel]:
    """Decorates a kernel that the host launches. varying: numbers for whose values no kernel is compiled."""
    return functools.partial(Kernel, varying=varying)
