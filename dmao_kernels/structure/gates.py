"""A learnable gate per component: training itself tells which components are worth keeping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dmao_kernels.layout import Pattern
from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.places import Gate, innermost


class ComponentGate(Gate):
    """Parametrization ``w -> w * gate``, one gate per component; 1 in the beginning."""

    def __init__(self, weight: Tensor, components: int, pattern: Pattern, sizes: dict[str, int]) -> None:
        super().__init__()
        self.repeats, _, self.run = pattern.triple(components, sizes)
        self.gate = nn.Parameter(torch.ones(components, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, every component times its gate."""
        view = weight.reshape(self.repeats, self.gate.numel(), self.run)
        return (view * self.gate[:, None]).reshape(weight.shape)


class ComponentGates:
    """Put a gate on every component of every elastic module.

    The gate scales the output tensor, as a parametrization, so whatever reads the weight sees ``w * gate``.
    It is part of the module's layout: edits, optimizer state, averaged copies and checkpoints carry it. Its
    parameters are to be given to the optimizer (``parameters()``); score with ``Scores(elastic,
    metric="gate")``; add ``penalty`` to the loss, and the gates of components that do not pay for their
    parameters go to zero. ``fold`` ends it. Gates of a module that is frozen as a whole are frozen, too: to learn
    these alone, let them require gradients.

    A freshly built model that is to load a gated checkpoint needs its gates first. So does every averaged copy: one
    that exists already gets them as one of the ``companions``.

    Raises ValueError where a module has gates already, or more than one output tensor.
    """

    def __init__(self, elastic: Elastic, companions: Iterable[nn.Module] = ()) -> None:
        self.elastic = elastic
        if elastic.storage == "slots":
            raise ValueError("ComponentGates: gates need tight storage, the model is in slots storage")
        for m in elastic.modules.values():
            if m.gate is not None:
                raise ValueError(f"ComponentGates: {m.title} has gates already")
            if len(m.layout.output) != 1:
                raise ValueError(f"ComponentGates: {m.title} must have one output tensor, got {m.layout.output}")
        models = [innermost(companion) for companion in companions]
        for m in elastic.modules.values():
            _attach(m, [model.get_submodule(m.name) for model in models])
        elastic.version += 1

    def parameters(self) -> Iterator[nn.Parameter]:
        """All gates, in module order."""
        for m in self.elastic.modules.values():
            yield _gate(m)

    def penalty(self, l1: float) -> Tensor:
        """l1 * (sum of cost |gate|) / (sum of costs), to be added to the loss; l1 while all gates are 1."""
        modules = [m for m in self.elastic.modules.values() if m.components]
        total = sum(m.cost * m.components for m in modules)
        terms = [_gate(m).abs().sum().float() * (m.cost / total) for m in modules]
        return l1 * (torch.stack(terms).sum() if terms else next(self.parameters()).new_zeros(()))

    def fold(self, companions: Iterable[nn.Module] = ()) -> None:
        """Multiply the gates into the weights and take them away; the function and the parameters stay.

        companions: averaged copies of the model, whose own gates are folded likewise.
        """
        models = [innermost(companion) for companion in companions]
        for m in self.elastic.modules.values():
            for module in (m.module, *(model.get_submodule(m.name) for model in models)):
                fold_gate(*_output(m, module))
            tensors = {name: pattern for name, pattern in m.layout.tensors.items() if name != m.gate}
            m.layout, m.gate = replace(m.layout, tensors=tensors), None
        self.elastic.version += 1


def fold_gate(owner: nn.Module, leaf: str) -> None:
    """Multiply the gates of one tensor into it, and take them away."""
    # A deep copy shares the class that holds the parametrized property, and PyTorch deletes the property from
    # the class: without a class of its own, folding a model would break its copies.
    shared = type(owner)
    members = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, members)
    parametrize.remove_parametrizations(owner, leaf, leave_parametrized=True)


def _attach(m: ElasticModule, counterparts: Iterable[nn.Module]) -> None:
    name, trained = m.layout.output[0], m.trained
    for module in (m.module, *counterparts):
        owner, leaf = _output(m, module)
        gate = ComponentGate(getattr(owner, leaf), m.components, m.layout.pattern(name), m.sizes)
        gate.requires_grad_(trained)
        parametrize.register_parametrization(owner, leaf, gate, unsafe=True)
    m.gate = f"{name.rpartition('.')[0]}.parametrizations.{leaf}.0.gate".removeprefix(".")
    m.layout = replace(m.layout, tensors={**m.layout.tensors, m.gate: "C"})


def _output(m: ElasticModule, module: nn.Module) -> tuple[nn.Module, str]:
    path, _, leaf = m.layout.output[0].rpartition(".")
    return module.get_submodule(path), leaf


def _gate(m: ElasticModule) -> nn.Parameter:
    assert m.gate is not None
    gate = m.place(m.gate).tensor
    assert isinstance(gate, nn.Parameter)
    return gate
