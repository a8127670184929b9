"""discover: pairs of Linears with hidden units between them, in models that nobody has described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from dmao_kernels.layout import ComponentLayout
from dmao_kernels.structure.following import FIRST, SECOND, WHOLE, Follower, Hidden
from dmao_kernels.structure.places import find_place
from dmao_kernels.structure.register import describe, register_family


@dataclass(frozen=True)
class Pair:
    """Hidden units that were found.

    owner: the smallest module around the Linears; it is elastic now.  up: the Linears that make the units: one, or
    two that are multiplied, or one whose output is cut in halves that are.  down: the one that takes them.
    """

    owner: str
    up: tuple[str, ...]
    down: str
    units: int
    gated: bool

    def __str__(self) -> str:
        return f"{self.owner or '(the model)'}: {' x '.join(self.up)} -> {self.units} units -> {self.down}"


@dataclass(frozen=True)
class Discovery:
    """What `discover` found, and of every other nn.Linear that no family knows why not."""

    found: tuple[Pair, ...]
    refused: dict[str, str]

    def __str__(self) -> str:
        lines = [f"found: {len(self.found)}", *(f"  {pair}" for pair in self.found), f"refused: {len(self.refused)}"]
        return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in self.refused.items())])


def discover(model: nn.Module, example: Tensor | tuple[Any, ...] | Mapping[str, Any], components: int = 4) -> Discovery:
    """Make Linear, activation, Linear and gated pairs of ``model`` elastic, wherever they stand.

    The model runs once, without gradients and in evaluation mode, on ``example`` (a tensor, or all arguments by
    position or by name). Every function of PyTorch's that is called is seen: a pair is found where all that one Linear
    (or two that are multiplied; or the halves of one, as in GLU) makes goes, through functions that act on every unit
    alone, to one other Linear. Modules of known families are left to these.

    Each pair belongs to the smallest module around it, which becomes elastic by ``register_family``. As nobody knows
    what else that module does, it keeps one component. What the example does not make the model compute is not seen:
    choose one that takes the way that training takes.

    components: how many every pair is cut in.
    """
    if not isinstance(example, Tensor | tuple | list | Mapping):
        raise TypeError(f"discover: example must be a tensor, a tuple or a mapping of arguments, got {example!r}")
    if not isinstance(components, int) or components < 1:
        raise ValueError(f"discover: components must be a whole number from 1, got {components!r}")
    linears, refused = _candidates(model)
    follower = Follower(linears)
    arguments = (example,) if isinstance(example, Tensor) else example
    with torch.no_grad(), _evaluating(model), follower:
        result = model(**arguments) if isinstance(arguments, Mapping) else model(*arguments)
    follower.leaves(result)
    found: list[Pair] = []
    reasons: dict[str, str] = {}
    for down, hidden in ((down, hidden) for down, all_taken in follower.taken.items() for hidden in all_taken):
        pair = _pair(follower, down, hidden)
        reason = _why_not(follower, pair, hidden, components) or _why_not_beside(pair, found, model)
        if reason is None:
            found.append(pair)
            register_family(model.get_submodule(pair.owner), (_layout(pair, follower), components), can_be_empty=False)
        else:
            reasons |= dict.fromkeys(pair.up, reason)
    in_pairs = {name for pair in found for name in (*pair.up, pair.down)}
    for name in linears.keys() - in_pairs:
        refused[name] = reasons.get(name) or _why_alone(follower, name)
    order = [name for name, _ in model.named_modules() if name in refused]
    return Discovery(tuple(found), {name: refused[name] for name in order})


def _candidates(model: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """The Linears that may be resized, and of the others why not; those of known families are neither."""
    known = {id(tensor) for module in model.modules() for tensor in _described_tensors(module)}
    users = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    linears, refused = {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or id(module.weight) in known:
            continue
        if type(module) is not nn.Linear:
            refused[name] = f"a class derived from Linear ({type(module).__name__})"
        elif tied := [key for key, tensor in module.named_parameters() if users[id(tensor)] > 1]:
            refused[name] = f"its {tied[0]} is tied to another"
        else:
            linears[name] = module
    return linears, refused


def _described_tensors(module: nn.Module) -> Iterator[Tensor]:
    described = describe(module)
    layout = described[0] if isinstance(described, tuple) else described
    if isinstance(layout, ComponentLayout):
        for name in layout.tensors:
            if (tensor := find_place(module, name, type(module).__name__).tensor) is not None:
                yield tensor


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _pair(follower: Follower, down: str, hidden: Hidden) -> Pair:
    up = tuple(name for name in follower.linears if name in hidden.makers)
    paths = [name.split(".")[:-1] for name in (*up, down)]
    common = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    owner = ".".join(level[0] for level in common)
    return Pair(owner, up, down, follower.linears[down].in_features, len(hidden.parts) > 1)


def _why_not(follower: Follower, pair: Pair, hidden: Hidden, components: int) -> str | None:
    for name in pair.up:
        if (reason := follower.gone.get(name)) is not None:
            return reason if len(pair.up) == 1 else f"{name}: {reason}"
        if {half for maker, half in hidden.parts if maker == name} not in ({WHOLE}, {FIRST, SECOND}):
            return "only one half of its output is used"
    for name in (*pair.up, pair.down):
        if follower.calls[name] > 1:
            return f"{name} is called {follower.calls[name]} times"
    if not hidden.activated:
        return f"no activation stands between it and {pair.down}"
    if pair.units % components:
        return f"its {pair.units} units cannot be cut in {components} components"
    return None


def _why_not_beside(pair: Pair, found: list[Pair], model: nn.Module) -> str | None:
    for other in found:
        if both := {*pair.up, pair.down} & {*other.up, other.down}:
            return f"{both.pop()} belongs to the units before it"
        if pair.owner == other.owner:
            return f"{pair.owner or 'the model'} holds another pair: give each a module of its own"
    described, owner = describe(model.get_submodule(pair.owner)), pair.owner or "the model"
    if isinstance(described, str):
        return f"{owner} is not elastic: {described}"
    return None if described is None else f"{owner} is known as a family of its own"


def _why_alone(follower: Follower, name: str) -> str:
    if not follower.calls[name]:
        return "not called on this example"
    return follower.gone.get(name, "what it takes and what it makes is of no pair")


def _layout(pair: Pair, follower: Follower) -> ComponentLayout:
    """Relative to the owner."""
    start = len(pair.owner) + 1 if pair.owner else 0
    down = pair.down[start:]
    tensors: dict[str, str] = {}
    attributes: dict[str, str] = {}
    for number, name in enumerate(pair.up):
        rows = "(C u)" if follower.linears[name].out_features == pair.units else "(two C u)"
        tensors |= {f"{name[start:]}.weight": f"{rows} d{number}", f"{name[start:]}.bias": rows}
        attributes[f"{name[start:]}.out_features"] = rows
    return ComponentLayout(
        family="gated" if pair.gated else "feedforward",
        tensors={**tensors, f"{down}.weight": "e (C u)"},
        output=(f"{down}.weight",),
        scored=f"{pair.up[0][start:]}.weight",
        shared=(f"{down}.bias",),
        attributes={**attributes, f"{down}.in_features": "(C u)"},
    )
