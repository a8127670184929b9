"""compact: a trained elastic model as plain PyTorch modules of the final widths; the register of what it knows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from dmao_kernels.plain import layers
from dmao_kernels.structure.empty import EmptyForward
from dmao_kernels.structure.gates import fold_gate
from dmao_kernels.structure.places import Gate, uncompiled
from dmao_kernels.structure.register import OWN
from dmao_kernels.structure.slots.storage import in_slots
from dmao_kernels.swaps.registry import without_swap

Plain = Callable[[nn.Module], nn.Module]
_PLAIN: dict[type[nn.Module], Callable[..., nn.Module]] = {}


def register_plain(cls: type[nn.Module], make: Callable[..., nn.Module]) -> None:
    """Let `compact` replace modules of exactly the class ``cls``.

    make: (module, plain) -> the plain module. It may take over parameters and modules of ``module``, which is a copy
        already; ``plain(part)`` is what becomes of a part.
    """
    _PLAIN[cls] = make


def compact(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in plain PyTorch modules of the present widths, for deployment.

    Nothing in it needs this library's operators. Layers of dmao_kernels.nn become
    those of dmao_kernels.plain.layers, made of the same nn.Linear, nn.Conv1d and nn.LayerNorm under the same names;
    they take padded rows and a mask that leaves each utterance at least one frame. nn.MultiheadAttention is PyTorch's
    own again, or where its heads do not add up to the width, a subclass. Gates and block masks are multiplied into the
    weights, `accelerate` and torch.compile are undone; hooks of layers that are replaced are left out. Modules
    without components become modules without parameters that return zeros; blocks of dmao_kernels.nn leave them out.
    Everything else is copied as it is. The function is that of ``model`` to rounding, the mode (train, eval) stays.

    What torch.export or torch.onnx.export make of the result runs where this library is not installed; a pickle of the
    result itself does not where one of its modules is of dmao_kernels.plain. A forward of your own that calls the
    operations of dmao_kernels is exported under `dmao_kernels.use_backend("reference")`, where they are PyTorch's.

    Raises ValueError for a layer of this library that it cannot replace, such as a class derived from one, and for a
    model in slots storage.
    """
    made: dict[int, nn.Module] = {}
    if names := in_slots(model):
        raise ValueError(
            f"compact: {names[0]} is in slots storage: call Elastic.to_tight() first, of a copy.deepcopy of it "
            "where the training goes on"
        )

    def convert(module: nn.Module) -> nn.Module:
        module = uncompiled(module)
        if id(module) not in made:
            made[id(module)] = _convert(module, convert)
        return made[id(module)]

    # The dictionary keeps only ids: the copy must live as long as it does.
    source = copy.deepcopy(model)
    result = convert(source)
    for name, module in result.named_modules():
        module.__dict__.pop(OWN, None)
        if any(
            c.__module__.startswith("dmao_kernels.") and c.__module__ != layers.__name__ for c in type(module).__mro__
        ):
            raise ValueError(
                f"compact: {name or 'the model'} ({type(module).__name__}) is made of this library's operations: "
                "tell how to replace it with dmao_kernels.plain.register_plain"
            )
    return result


def _convert(module: nn.Module, convert: Plain) -> nn.Module:
    if isinstance(answer := module.__dict__.get("forward"), EmptyForward):
        return empty_in_place_of(module, answer).train(module.training)
    for name in _gated(module):
        fold_gate(module, name)
    module.__class__ = without_swap(type(module))
    if (make := _PLAIN.get(type(module))) is not None:
        return make(module, convert).train(module.training)
    for name, child in module._modules.items():  # named_children would pass over the second place of a module
        module._modules[name] = None if child is None else convert(child)
    return module


def empty_in_place_of(module: nn.Module, answer: EmptyForward, **more: Any) -> layers.Empty:
    """With the attributes that a parent may want to read, and ``more`` of them."""
    internal = nn.Module().__dict__.keys() | {"forward"}
    return layers.Empty(answer, {n: value for n, value in vars(module).items() if n not in internal} | more)


def _gated(module: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(module):
        return []
    chains = module.parametrizations.items()  # type: ignore[union-attr, operator]
    return [name for name, chain in chains if all(isinstance(each, Gate) for each in chain)]
