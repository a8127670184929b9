"""Where a module keeps its components: einops-like patterns with one component axis ``C``.

A pattern such as ``"(two C u) d"`` names the axes of one tensor. In the memory of a contiguous tensor every
pattern is the same thing, ``repeats x components x run``: what stands left of ``C``, ``C`` itself, what
stands right of it. Scores, edits, kernels and checkpoints all read this triple, so they cannot disagree about
which numbers belong to a component.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import prod

from torch import Tensor

COMPONENT = "C"
NUMBER_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4}

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Pattern:
    """The named axes of one tensor, e.g. ``Pattern("(two C u) d")``.

    Names in one pair of parentheses share one axis, the leftmost varying slowest. ``C`` is the component axis
    and stands exactly once; ``one``, ``two``, ``three``, ``four`` are fixed factors; every other name is a
    size read off the tensors.

    Raises ValueError where the text is not such a pattern.
    """

    text: str

    def __post_init__(self) -> None:
        names = [name for axis in self.axes for name in axis]
        if names.count(COMPONENT) != 1:
            raise ValueError(
                f"pattern '{self.text}': the component axis C must stand exactly once, found {names.count(COMPONENT)}"
            )

    @cached_property
    def axes(self) -> tuple[tuple[str, ...], ...]:
        """The names on every axis of the tensor."""
        return _parse(self.text)

    @property
    def factors(self) -> frozenset[str]:
        """The names whose sizes are read off the tensors."""
        return frozenset(n for axis in self.axes for n in axis if n != COMPONENT and n not in NUMBER_WORDS)

    def infer(self, shape: Sequence[int], components: int, sizes: Sizes) -> dict[str, int]:
        """The sizes that ``shape`` adds to the known ``sizes``, given the number of components.

        A name stays unknown where an axis has two unknown names or no elements.
        Raises ValueError where the pattern does not fit the shape.
        """
        if len(shape) != len(self.axes):
            raise ValueError(
                f"pattern '{self.text}' has {len(self.axes)} axes, the tensor {list(shape)} has {len(shape)}"
            )
        known = {**NUMBER_WORDS, **sizes, COMPONENT: components}
        for axis, extent in zip(self.axes, shape, strict=True):
            unknown = [name for name in axis if name not in known]
            factor = prod(known[name] for name in axis if name in known)
            fits = extent == factor if not unknown else (extent % factor == 0 if factor else extent == 0)
            if not fits:
                text = " ".join(axis)
                relation = "is not" if not unknown else "is not divisible by"
                values = ", ".join(f"{n}={known[n]}" for n in axis if n in known and n not in NUMBER_WORDS)
                raise ValueError(
                    f"pattern '{self.text}' does not fit the shape {list(shape)}: axis ({text}) has {extent} "
                    f"entries, which {relation} {factor}" + (f" ({values})" if values else "")
                )
            if len(unknown) == 1 and factor:
                known[unknown[0]] = extent // factor
        return {name: known[name] for name in self.factors if name in known}

    def shape(self, components: int, sizes: Sizes) -> tuple[int, ...]:
        """The shape of the tensor with this number of components."""
        known = {**NUMBER_WORDS, **sizes, COMPONENT: components}
        return tuple(prod(known[name] for name in axis) for axis in self.axes)

    def triple(self, components: int, sizes: Sizes) -> tuple[int, int, int]:
        """``(repeats, components, run)`` of the contiguous tensor."""
        known = {**NUMBER_WORDS, **sizes}
        names = [name for axis in self.axes for name in axis]
        split = names.index(COMPONENT)
        return prod(known[n] for n in names[:split]), components, prod(known[n] for n in names[split + 1 :])

    def view(self, tensor: Tensor, components: int, sizes: Sizes | None = None) -> Tensor:
        """View ``tensor`` as ``[repeats, components, run]``.

        ``sizes`` may be left out where the tensor itself tells them (not for an empty one).
        Raises ValueError where the pattern does not fit, or the tensor is not contiguous.
        """
        found = self.infer(tensor.shape, components, sizes or {})
        if missing := self.factors - found.keys():
            raise ValueError(
                f"pattern '{self.text}': sizes of {sorted(missing)} cannot be read off {list(tensor.shape)}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"pattern '{self.text}': the tensor must be contiguous, got strides {tensor.stride()}")
        return tensor.view(self.triple(components, found))


@cache
def _parse(text: str) -> tuple[tuple[str, ...], ...]:
    axes: list[tuple[str, ...]] = []
    group: list[str] | None = None
    tokens = re.findall(r"[()]|[^\s()]+", text)
    for token in tokens:
        if token == "(":
            if group is not None:
                raise ValueError(f"pattern '{text}': parentheses cannot be nested")
            group = []
        elif token == ")":
            if not group:
                raise ValueError(f"pattern '{text}': ')' closes nothing")
            axes.append(tuple(group))
            group = None
        elif not token.isidentifier():
            raise ValueError(f"pattern '{text}': '{token}' is not a name (sizes are names, such as d, or one ... four)")
        elif group is None:
            axes.append((token,))
        else:
            group.append(token)
    if group is not None:
        raise ValueError(f"pattern '{text}': '(' is not closed")
    return tuple(axes)


@dataclass(frozen=True)
class ComponentLayout:
    """Which slice of which tensor belongs to a component of one kind of module.

    Names are dotted and relative to the module. A tensor that the module registers as None (a bias switched
    off) is passed over; one that it does not have at all is an error when the layout is bound.

    family: feedforward, glu_convolution, attention, packed_attention, cgmlp, or the user's own word.
    tensors: parameter or buffer -> pattern.
    output: the tensors through which a component's result leaves; source and copy share them.
    scored: the published scored slice.
    shared: tensors of the module that no component owns (a norm over the input, the output bias); the cost
        amortises them.
    even: buffers of weights that source and copy share evenly (statistics weights of a norm over components).
    attributes: integers (or 1-tuples) that follow the width -> pattern of one axis, e.g.
        {"w1.out_features": "(C u)"}.
    dropout: float attributes that follow the width: p * components / standard components.
    """

    family: str
    tensors: Mapping[str, str]
    output: tuple[str, ...]
    scored: str
    shared: tuple[str, ...] = ()
    even: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    dropout: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, text in {**self.tensors, **self.attributes}.items():
            try:
                pattern = Pattern(text)
            except ValueError as error:
                raise ValueError(f"layout {self.family}: {name}: {error}") from None
            if name in self.attributes and len(pattern.axes) != 1:
                raise ValueError(f"layout {self.family}: attribute {name}: '{text}' must name one axis, e.g. '(C u)'")
        if not isinstance(self.scored, str):
            raise ValueError(f"layout {self.family}: scored must be the name of one tensor, got {self.scored!r}")
        for role in ("output", "shared", "even", "dropout"):
            if isinstance(names := getattr(self, role), str):
                raise ValueError(f"layout {self.family}: {role} must be a tuple of names, ('{names}',), got '{names}'")
        for role, names in (("output", self.output), ("even", self.even), ("scored", (self.scored,))):
            for name in names:
                if name not in self.tensors:
                    raise ValueError(f"layout {self.family}: {role} tensor '{name}' is not among {list(self.tensors)}")
        if not self.output:
            raise ValueError(f"layout {self.family}: output must name at least one tensor")
        if both := set(self.shared) & set(self.tensors):
            raise ValueError(f"layout {self.family}: {sorted(both)} cannot be shared and owned by components")

    def pattern(self, name: str) -> Pattern:
        """The pattern of a tensor or of an attribute."""
        return Pattern(self.tensors[name] if name in self.tensors else self.attributes[name])

    def infer(self, shapes: Mapping[str, Sequence[int]], components: int, sizes: Sizes | None = None) -> dict[str, int]:
        """The size of every name, agreed upon by all tensors in ``shapes``.

        ``sizes`` are sizes known before; an empty module needs them, since its tensors no longer tell.
        Raises ValueError naming the tensor, its pattern and shape, and what does not fit.
        """
        found = dict(sizes or {})
        for _ in shapes:  # a name may be told by a later tensor: at most one round per tensor
            before = len(found)
            for name, shape in shapes.items():
                try:
                    found |= self.pattern(name).infer(shape, components, found)
                except ValueError as error:
                    raise ValueError(f"layout {self.family}: {name}: {error}") from None
            if len(found) == before:
                break
        for name in shapes:
            if missing := self.pattern(name).factors - found.keys():
                raise ValueError(f"layout {self.family}: {name}: no tensor tells the size of {sorted(missing)}")
        return found
