"""Follow hidden units through one run of a model: which Linear made them, which activation, which Linear takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What acts on every unit alone, by the names of functions and methods, without underscores before and behind.
_ACTIVATIONS = _words(
    "relu relu6 leaky_relu rrelu prelu elu selu celu gelu silu mish sigmoid logsigmoid hardsigmoid tanh hardtanh "
    "hardswish softplus softsign tanhshrink softshrink hardshrink threshold exp erf square pow abs clamp clamp_min"
)
_ARITHMETIC = _words(
    "mul rmul imul multiply add radd iadd sub rsub isub div truediv rtruediv itruediv neg maximum minimum masked_fill "
    "dropout alpha_dropout to type type_as float double half bfloat16 contiguous clone detach"
)
_VIEWS = _words("view reshape flatten unflatten squeeze unsqueeze expand transpose permute movedim")
_READERS = _words("numpy tolist item")
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]

WHOLE, FIRST, SECOND = "", "first half", "second half"


@dataclass(frozen=True)
class Hidden:
    """What a tensor's last axis holds: the outputs (or halves) of Linears, and whether an activation was applied."""

    parts: frozenset[tuple[str, str]]
    activated: bool = False

    @property
    def makers(self) -> set[str]:
        """The Linears."""
        return {name for name, _ in self.parts}


@dataclass
class Follower(TorchFunctionMode):
    """While it is entered, every function of PyTorch's that is called is looked at.

    calls: of every Linear.  taken: by a Linear: what it was given.  gone: of a Linear, why its output cannot be
    followed to one other Linear, or its weight not be resized.
    """

    linears: Mapping[str, nn.Linear]
    calls: Counter[str] = field(default_factory=Counter)
    taken: dict[str, list[Hidden]] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._weights = {id(linear.weight): name for name, linear in self.linears.items()}
        self._parameters = self._weights | {id(linear.bias): name for name, linear in self.linears.items()}
        self._parameters.pop(id(None), None)
        self._hidden: dict[int, tuple[Tensor, Hidden]] = {}  # with the tensor: a number is reused when it dies

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = list(tensors_in((args, kwargs or {})))
        name = "setitem" if func == _SET_DATA else getattr(func, "__name__", str(func)).strip("_")
        made = list(tensors_in(result))
        if not made and name not in _READERS and name != "setitem":
            return result  # a shape, a dtype
        if func is F.linear:
            self._linear(given, made[0])
            return result
        for tensor in given:
            if (owner := self._parameters.get(id(tensor))) is not None:
                self._lose([owner], f"its parameters are used by {name}")
        if name == "setitem":
            target, *index, value = args
            self._assigned(target, index[0] if index else ..., value)
            return result
        hidden = [(tensor, found) for tensor in given if (found := self.hidden(tensor))]
        if hidden and (followed := self._follow(name, hidden, given, made)):
            for tensor, known in zip(made, followed, strict=True):
                self._remember(tensor, known)
        else:
            for _, found in hidden:
                self._lose(found.makers, f"its output goes to {name}")
        return result

    def hidden(self, tensor: Tensor) -> Hidden | None:
        """What is known of a tensor."""
        entry = self._hidden.get(id(tensor))
        return None if entry is None else entry[1]

    def leaves(self, tensors: Any) -> None:
        """These leave the model."""
        for tensor in tensors_in(tensors):
            if (found := self.hidden(tensor)) is not None:
                self._lose(found.makers, "its output leaves the model")

    def _linear(self, given: list[Tensor], made: Tensor) -> None:
        name = self._weights.get(id(given[1]))
        for tensor in given[:1] if name else given:
            if (found := self.hidden(tensor)) is None:
                continue
            for maker in found.makers:
                others = [down for down, all_taken in self.taken.items() for h in all_taken if maker in h.makers]
                if name is None:
                    self._lose([maker], "its output goes to a matrix that is of no nn.Linear")
                elif others and others[0] != name:
                    self._lose([maker], f"its output goes to {others[0]} and {name}")
            if name is not None:
                self.taken.setdefault(name, []).append(found)
        if name is not None:
            self.calls[name] += 1
            self._remember(made, Hidden(frozenset({(name, WHOLE)})))

    def _assigned(self, target: Tensor, index: Any, value: Any) -> None:
        """Units that are assigned to a part of something, and units of which a part is assigned, are lost; frames of
        theirs may become a number."""
        if isinstance(value, Tensor) and (found := self.hidden(value)) is not None:
            self._lose(found.makers, "its output is assigned to a part of another tensor")
        if (found := self.hidden(target)) is not None and not (_is_number(value) and _leaves_units(target, index)):
            self._lose(found.makers, "a part of its output is assigned")

    def _follow(
        self, name: str, hidden: list[tuple[Tensor, Hidden]], given: list[Tensor], made: list[Tensor]
    ) -> list[Hidden] | None:
        """What a function makes of hidden units, for each of its results; None where they cannot be followed."""
        x, found = hidden[0]
        if name in _ACTIVATIONS or name in _ARITHMETIC:
            others = [t for t in given if self.hidden(t) is None and name not in ("to", "type_as")]
            if any(t.dim() and t.shape[-1] != 1 for t in others):
                return None  # what stands beside them differs from unit to unit
            if len({t.shape[-1] for t in (*made, *(t for t, _ in hidden))}) != 1:
                return None
            activated = name in _ACTIVATIONS or (name.endswith("mul") and len(hidden) > 1)
            parts = frozenset[tuple[str, str]]().union(*(h.parts for _, h in hidden))
            return [Hidden(parts, activated or any(h.activated for _, h in hidden))]
        if len(hidden) > 1:
            return None
        if name in _VIEWS:
            same_axis = made[0].shape[-1:] == x.shape[-1:] and made[0].stride(-1) == x.stride(-1) == 1
            return [found] if same_axis else None
        if len(found.parts) != 1 or found.parts != {(maker := next(iter(found.makers)), WHOLE)}:
            return None
        if name == "glu" and made[0].shape[:-1] == x.shape[:-1]:
            return [Hidden(frozenset({(maker, FIRST), (maker, SECOND)}), True)]
        halves = [half for tensor in made if (half := _half(x, tensor)) is not None]
        return (
            [Hidden(frozenset({(maker, half)}), found.activated) for half in halves]
            if len(halves) == len(made)
            else None
        )

    def _remember(self, tensor: Tensor, hidden: Hidden) -> None:
        self._hidden[id(tensor)] = (tensor, hidden)

    def _lose(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.gone.setdefault(name, reason)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _leaves_units(target: Tensor, index: Any) -> bool:
    """Whether an index takes the last axis whole: slices, numbers and masks of axes before it."""
    axes = 0
    for each in index if isinstance(index, tuple) else (index,):
        mask = isinstance(each, Tensor) and each.dtype == torch.bool
        if not (mask or isinstance(each, slice | int)):
            return False
        axes += each.dim() if mask else 1
    return axes < target.dim()


def _half(x: Tensor, part: Tensor) -> str | None:
    """Which half of ``x``'s last axis ``part`` is a view of."""
    same = part.shape[:-1] == x.shape[:-1] and part.stride() == x.stride()
    if not same or 2 * part.shape[-1] != x.shape[-1] or part.untyped_storage()._cdata != x.untyped_storage()._cdata:
        return None
    offset = int(part.storage_offset() - x.storage_offset())
    return {0: FIRST, part.shape[-1] * x.stride(-1): SECOND}.get(offset)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments or results."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)
