"""The register of elastic modules: classes, classes known by their dotted path only, and single modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn

from dmao_kernels.layout import ComponentLayout

Described = ComponentLayout | tuple[ComponentLayout, int] | str | None
LayoutSource = Described | Callable[[nn.Module], Described]


@dataclass(frozen=True)
class Family:
    """How modules of one class are laid out, and what they do without components; see ``register_family``."""

    layout: LayoutSource
    can_be_empty: bool = True
    returns: int = 1
    prepare: Callable[[nn.Module], None] | None = None


_FAMILIES: dict[type[nn.Module] | str, Family] = {}
OWN = "_elastic_family"  # a module's own entry, in its __dict__: copied and pickled with it


def register_family(
    target: type[nn.Module] | str | nn.Module,
    layout: LayoutSource,
    *,
    can_be_empty: bool = True,
    returns: int = 1,
    prepare: Callable[[nn.Module], None] | None = None,
) -> None:
    """Make every module of a class (and of its subclasses) elastic, or one module.

    target: the class; or its dotted path, e.g. "torchaudio.models.conformer._FeedForwardModule", so that a package
        need not be imported to be known; or one module.
    layout: a ComponentLayout; or a pair (layout, number of components); or, as text, the reason why the module is
        not elastic; or None, where it only needs to be prepared; or a function of the module that returns one of
        these. Without a number, an attribute with the pattern "C" (such as ``heads``) tells it, else
        ``Elastic(components=...)``.
    can_be_empty: an empty module answers with zeros of the shape of its first argument (one whose sizes d and e, input
        and output, differ is never emptied). Say False where that
        is not what "contributes nothing" means, e.g. where the residual connection stands inside the module.
    returns: how many values ``forward`` returns; those of an empty module are zeros, None, None, ...
    prepare: called with every such module (of the model, and of averaged copies) before anything else is done with it.
    """
    if isinstance(layout, type) or not callable(layout):
        layout = _checked(layout, "register_family: layout")
    family = Family(layout, can_be_empty, returns, prepare)
    if isinstance(target, nn.Module):
        target.__dict__[OWN] = family
    elif isinstance(target, str) or (isinstance(target, type) and issubclass(target, nn.Module)):
        if isinstance(target, str) and "." not in target:
            raise ValueError(
                f"register_family: target must be a dotted path such as 'package.module.Class': '{target}'"
            )
        _FAMILIES[target] = family
    else:
        raise TypeError(
            f"register_family: target must be a subclass of nn.Module, its dotted path, or a module, got {target!r}"
        )


def _checked(described: object, what: str) -> Described:
    """What describes a module. Raises TypeError where it is nothing that ``register_family`` knows."""
    layout, components = described if isinstance(described, tuple) and len(described) == 2 else (described, None)
    fits = isinstance(layout, ComponentLayout) and isinstance(components, int | None)
    if not fits and not isinstance(described, str | None):
        raise TypeError(
            f"{what} must be a ComponentLayout, a pair of one and a number of components, a text or None, "
            f"got {described!r}"
        )
    return cast(Described, described)


def _families(module: nn.Module) -> Iterator[Family]:
    """The module's own family, then those of its classes, the nearest first."""
    if (own := module.__dict__.get(OWN)) is not None:
        yield own
    for cls in type(module).__mro__:
        for key in (cls, f"{cls.__module__}.{cls.__qualname__}"):
            if key in _FAMILIES:
                yield _FAMILIES[key]


def find_family(module: nn.Module) -> Family | None:
    """The module's own family, or that of its nearest registered class."""
    return next(_families(module), None)


def describe(module: nn.Module) -> Described:
    """The layout of one module, with its components where they are told; or why it is not elastic; or None."""
    if callable(own := getattr(module, "component_layout", None)):
        return _checked(own(), f"{type(module).__name__}: what component_layout returns")
    layout = None if (family := find_family(module)) is None else family.layout
    if not callable(layout):
        return layout
    return _checked(layout(module), f"{type(module).__name__}: what the function given as layout returns")


def prepare(model: nn.Module) -> None:
    """Do what the families of the modules, those of base classes included, want done before a layout is read."""
    for module in model.modules():
        for family in _families(module):
            if family.prepare is not None:
                family.prepare(module)
