"""accelerate: known modules of any model get the faster forward of a subclass; the register of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)

Swap = Callable[[nn.Module], "type[nn.Module] | str"]

_SWAPS: dict[type[nn.Module], Swap] = {}
_NAMED_SWAPS: dict[str, Swap] = {}  # of classes that are known by their dotted path
_FAST: set[type[nn.Module]] = set()
_MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def register_swap(cls: type[nn.Module], fast: type[nn.Module], why_not: Callable[..., str | None]) -> None:
    """Let `accelerate` turn modules of exactly the class ``cls`` into ``fast``.

    fast: a subclass of ``cls`` with another ``forward`` and nothing else; it computes the same, and calls
        ``super().forward`` for arguments that it does not take.
    why_not: of a module, the reason why it must stay as it is, or None.
    """
    if not issubclass(fast, cls):
        raise TypeError(f"register_swap: {fast.__name__} must be a subclass of {cls.__name__}")
    _SWAPS[cls] = lambda module: why_not(module) or fast
    _FAST.add(fast)


def register_named_swap(path: str, fast: type[nn.Module], why_not: Callable[..., str | None]) -> None:
    """The same for a class of a package that need not be imported, known by its dotted path.

    fast: a class with another ``forward``, from which and from the class itself one is derived where it is met.
    """
    _NAMED_SWAPS[path] = lambda module: why_not(module) or fast_class(fast, type(module))


def fast_class(fast: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """``kind`` with the forward of ``fast``; the same class whenever it is asked for."""

    def reduce(self: nn.Module, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _new_fast, (fast, kind), self.__getstate__()

    if (fast, kind) not in _MADE:
        members = {"__doc__": fast.__doc__, "__reduce_ex__": reduce}  # pickled by what it is made of
        _MADE[fast, kind] = type(f"Fast{kind.__name__}", (fast, kind), members)
        _FAST.add(_MADE[fast, kind])
    return _MADE[fast, kind]


def without_swap(kind: type[nn.Module]) -> type[nn.Module]:
    """The class from which `accelerate` made ``kind``, or ``kind`` itself."""
    made = next((original for (_, original), fast in _MADE.items() if fast is kind), None)
    return made or (kind.__mro__[1] if kind in _FAST else kind)


def _new_fast(fast: type[nn.Module], kind: type[nn.Module]) -> nn.Module:
    made = fast_class(fast, kind)
    return made.__new__(made)


def class_path(kind: type) -> str:
    """Its dotted path."""
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclass(frozen=True)
class Entry:
    """A module of the model: its dotted name, its class before, and what became of it or why it was left."""

    name: str
    kind: str
    note: str


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` did: the modules that it changed, and those with parameters that it left, with reasons."""

    changed: tuple[Entry, ...]
    left: tuple[Entry, ...]

    def __str__(self) -> str:
        return "\n".join([*_lines("changed", self.changed), *_lines("left", self.left)])


def _lines(title: str, entries: Iterable[Entry]) -> list[str]:
    """One line per class and note, with the names it holds for."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((entry.kind, entry.note), []).append(entry.name or "(the model)")
    lines = [f"{title}: {sum(map(len, groups.values()))} modules"]
    for (kind, note), names in groups.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {kind}: {note}: {', '.join(names[:3])}{more}")
    return lines


def accelerate(model: nn.Module) -> Acceleration:
    """Give known modules of ``model`` a faster forward, in place, and tell what was changed and what was left.

    Modules stay the objects they are, with their parameters, hooks, state dict keys and places: they become a
    subclass of their own class. The results are those of before to rounding, in training up to the dropout masks;
    what is computed for the padding of a batch is not defined (zeros, mostly). A depthwise convolution returns a
    view of channels-last frames, which is not contiguous. Calls with arguments that the faster forward does not take,
    such as an arbitrary attention mask, go to PyTorch's as before.

    A module of a derived class, or with hooks or parametrizations inside of what would become one operation, is
    left; where hooks or other modules come later, calls go to PyTorch's forward as long as they are there.

    Calling this twice changes nothing more. Save the state dict, not the pickled model, where the model is to be
    read without this library.

    Returns:
        The report; ``str`` of it is meant to be read.
    """
    changed, left = [], []
    inside: set[int] = set()  # modules that a changed one answers for
    for name, module in list(model.named_modules()):
        kind = type(module)
        decision = _decide(module)
        if isinstance(decision, str):
            known = _is_ours(kind) or isinstance(module, tuple(_SWAPS)) or class_path(kind) in _NAMED_SWAPS
            if id(module) not in inside and (known or any(True for _ in module.parameters(recurse=False))):
                left.append(Entry(name, kind.__name__, decision))
        else:
            module.__class__ = decision
            changed.append(Entry(name, kind.__name__, (decision.__doc__ or "").split(".")[0].split("\n")[0]))
        if _is_ours(type(module)):
            inside |= {id(part) for part in module.modules()}
    return Acceleration(tuple(changed), tuple(left))


def _is_ours(kind: type[nn.Module]) -> bool:
    return kind in _FAST or kind.__module__.startswith("dmao_kernels.")


def _decide(module: nn.Module) -> type[nn.Module] | str:
    kind = type(module)
    if kind in _FAST:
        return "accelerated already"
    if (swap := _SWAPS.get(kind) or _NAMED_SWAPS.get(class_path(kind))) is not None:
        return swap(module)
    if _is_ours(kind):
        return "made of this library's operations already"
    for known in _SWAPS:
        if isinstance(module, known):
            return f"a class derived from {known.__name__}, whose forward may be another"
    return "no faster version of this class is known"


def why_not_plain(*parts: tuple[Any, ...]) -> str | None:
    """Why ``parts``, each with the classes that it may be of, cannot become one operation; None if they can.

    Faster forwards ask this in every call, as modules are replaced and get hooks at any time.
    """
    for module, *kinds in parts:
        if type(module) not in kinds:
            return f"{type(module).__name__} stands where {kinds[0].__name__} was expected"
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
        ):
            return f"a {type(module).__name__} inside has hooks, which would not be run"
    return None


def why_not_dtype(module: nn.Module) -> str | None:
    """Why the parameters cannot be computed with; None if they can."""
    for parameter in module.parameters():
        if parameter.dtype not in DTYPES:
            return f"its parameters are {str(parameter.dtype).removeprefix('torch.')}, not float32 or bfloat16"
    return None


def takes(x: Tensor) -> bool:
    """Whether the operations take ``x``: its dtype, or autocast's."""
    return x.dtype in DTYPES and not x.is_nested
