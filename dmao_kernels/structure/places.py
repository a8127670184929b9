"""Dotted names inside a module: where a tensor or an attribute lives, so that it can be read and replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

_WRAPPERS = (DistributedDataParallel, AveragedModel)


class Gate(nn.Module):
    """Base of the parametrizations that edits know how to follow: they scale whole components and nothing else."""


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside of what torch.compile made of it, whose names all have a prefix; any other one itself."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def innermost(model: nn.Module) -> nn.Module:
    """The model that torch.compile, DistributedDataParallel and AveragedModel wrap, in whatever order."""
    while True:
        inside = uncompiled(model.module if isinstance(model, _WRAPPERS) else model)
        if inside is model:
            return model
        model = inside


@dataclass(frozen=True)
class Place:
    """The place of one registered tensor: ``owner._parameters[leaf]`` or ``owner._buffers[leaf]``."""

    owner: nn.Module
    leaf: str

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, not a buffer."""
        return self.leaf in self.owner._parameters

    @property
    def tensor(self) -> Tensor | None:
        """What stands there now; None for a bias that is switched off."""
        table = self.owner._parameters if self.is_parameter else self.owner._buffers
        return table[self.leaf]


def find_place(module: nn.Module, name: str, where: str) -> Place:
    """The place of the tensor that ``name`` stands for; under a gate, the tensor behind it.

    Raises ValueError (beginning with ``where``) where there is none, or where it is computed from others.
    """
    owner, leaf = _owner(module, name, where)
    if parametrize.is_parametrized(owner, leaf):
        chain = owner.parametrizations[leaf]  # type: ignore[index]
        foreign = [type(p).__name__ for p in chain if not isinstance(p, Gate)]
        if foreign:
            raise ValueError(
                f"{where}: {name} is parametrized by {', '.join(foreign)}; remove the parametrization first"
            )
        owner, leaf = cast(nn.Module, chain), "original"
    if leaf not in owner._parameters and leaf not in owner._buffers:
        found = f"is a {type(getattr(owner, leaf)).__name__}" if hasattr(owner, leaf) else "does not exist"
        inside = [n for n, _ in owner.named_parameters() if n.rpartition(".")[2] == leaf]
        hint = f" (inside of it are {', '.join(inside)}: merge adapters first, or name all of these in a layout)"
        raise ValueError(
            f"{where}: {name} must be a parameter or a buffer of {type(owner).__name__}, but it {found}"
            + (hint if inside else "")
        )
    return Place(owner, leaf)


def get_attribute(module: nn.Module, name: str, where: str) -> Any:
    """The value of a dotted attribute. Raises ValueError where there is none."""
    owner, leaf = _owner(module, name, where)
    if not hasattr(owner, leaf):
        raise ValueError(f"{where}: {type(owner).__name__} has no attribute {leaf} (looking for {name})")
    return getattr(owner, leaf)


def set_attribute(module: nn.Module, name: str, value: Any, where: str) -> None:
    """Set a dotted attribute."""
    owner, leaf = _owner(module, name, where)
    setattr(owner, leaf, value)


def _owner(module: nn.Module, name: str, where: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return module.get_submodule(path), leaf
    except AttributeError:
        raise ValueError(f"{where}: {type(module).__name__} has no submodule {path} (looking for {name})") from None
